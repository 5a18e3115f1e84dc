from __future__ import annotations

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from oomguard.catalogue.lookup import find_model
from oomguard.catalogue.shipped import carried, families, litgpt_config, transformers_config
from oomguard.errors import ConfigError
from oomguard.estimate.architecture import from_config, from_gpt_config
from oomguard.job.memory_settings import Family

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}

#: Parameters in billions, as their makers publish them (model cards, safetensors headers).
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6.738,
    "meta-llama/Llama-2-13b-chat-hf": 13.016,
    "meta-llama/Llama-2-70b-hf": 68.977,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8.030,
    "meta-llama/Llama-3.1-70B-Instruct": 70.554,
    "meta-llama/Llama-3.2-1B": 1.236,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1.100,
    "Qwen/Qwen-7B-Chat": 7.721,
    "Qwen/Qwen1.5-7B-Chat": 7.721,
    "Qwen/Qwen2-0.5B": 0.494,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen2.5-Coder-32B-Instruct": 32.764,
    "Qwen/Qwen3-8B": 8.191,
    "Qwen/Qwen3-30B-A3B": 30.532,
    "Qwen/Qwen2-VL-7B-Instruct": 8.291,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.755,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292,
    "Qwen/Qwen2-Audio-7B-Instruct": 8.397,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
    "mistralai/Mistral-Nemo-Instruct-2407": 12.248,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.703,
    "google/gemma-2b": 2.506,
    "google/gemma-7b-it": 8.538,
    "google/gemma-2-9b-it": 9.242,
    "google/gemma-3-4b-it": 4.300,
    "google/gemma-3-27b-it": 27.432,
    "microsoft/phi-2": 2.780,
    "microsoft/Phi-3-mini-4k-instruct": 3.821,
    "microsoft/Phi-3-medium-4k-instruct": 13.960,
    "microsoft/phi-4": 14.660,
    "microsoft/Phi-4-mini-instruct": 3.836,
    "tiiuae/falcon-7b": 7.217,
    "tiiuae/falcon-40b": 41.84,
    "stabilityai/stablelm-base-alpha-3b": 3.638,
    "stabilityai/stablelm-3b-4e1t": 2.795,
    "stabilityai/stablelm-2-1_6b": 1.644,
    "openai-community/gpt2-xl": 1.558,
    "EleutherAI/pythia-6.9b": 6.857,
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_shapes_add_up_to_the_published_parameters(name, billions):
    found = transformers_config(name)
    assert found is not None
    assert from_config(found.config).parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_litgpts_shapes_agree_with_transformers_where_both_are_carried():
    pairs = {
        "checkpoints/meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
        "checkpoints/microsoft/phi-2": "microsoft/phi-2",
        "checkpoints/mistralai/Mistral-7B-v0.1": "mistralai/Mistral-7B-v0.1",
    }
    for checkpoint, hub in pairs.items():
        ours, theirs = litgpt_config(checkpoint), transformers_config(hub)
        assert ours is not None
        assert theirs is not None
        count = from_config(theirs.config).parameters
        assert from_gpt_config(ours[0]).parameters == pytest.approx(count, rel=0.01)


def test_every_carried_model_has_a_shape_and_its_family_a_source():
    assert all(facts["source"] for facts in families().values())
    assert len(carried()) > 90
    for one in carried():
        assert transformers_config(one.name) == one
        assert from_config(one.config).parameters > 10**7


def test_other_makers_copies_and_local_folders_are_found_by_name(tmp_path):
    for name in ("unsloth/llama-3-8b-bnb-4bit", "/data/models/Meta-Llama-3-8B", "./llama-3-8b"):
        found = find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE)
        assert found.architecture.parameters == 8_030_261_248


@pytest.mark.parametrize(
    ("name", "taken_for"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", None),  # its maker's variants have one shape
        ("/data/models/Meta-Llama-3-8B", None),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B"),
        ("Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-7B"),
        ("me/Mistral-7B-v0.3-sft", "mistralai/Mistral-7B-v0.3"),
    ],
)
def test_a_loose_match_says_what_the_name_was_taken_for(tmp_path, name, taken_for):
    assert find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE).taken_for == taken_for


@pytest.mark.parametrize("name", ["mistralai/Mistral-7B-v0.9", "microsoft/Phi-3-mini-64k-instruct"])
def test_another_version_or_context_length_is_another_model(tmp_path, name):
    with pytest.raises(ConfigError):
        find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE)


@pytest.mark.parametrize("name", ["me/unheard-of-7b", "me/chatglm-7b", "me/quen-7b"])
def test_no_model_of_another_family_is_suggested(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE)
    assert "Did you mean" not in caught.value.next_step


def test_the_models_own_folder_comes_first(tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
    }
    folder = tmp_path / "Meta-Llama-3-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = find_model("Meta-Llama-3-8B", Family.HF, cwd=tmp_path, environment=OFFLINE)
    assert found.source == str(folder / "config.json")
    assert found.architecture.hidden == 64


def test_a_litgpt_folder_and_the_hubs_cache_are_read(tmp_path):
    folder = tmp_path / "checkpoints" / "me" / "mine"
    folder.mkdir(parents=True)
    (folder / "model_config.yaml").write_text(
        "n_layer: 2\nn_embd: 64\nn_head: 4\nvocab_size: 100\n"
    )
    found = find_model("checkpoints/me/mine", Family.LITGPT, cwd=tmp_path, environment=OFFLINE)
    assert (found.family, found.architecture.vocab) == (Family.LITGPT, 512)

    snapshot = tmp_path / "hf" / "hub" / "models--me--other" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(
        '{"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 9}'
    )
    environment = {**OFFLINE, "HF_HOME": str(tmp_path / "hf")}
    cached = find_model("me/other", Family.HF, cwd=tmp_path, environment=environment)
    assert cached.architecture.hidden == 32


@pytest.fixture
def hub(tmp_path):
    """Serve one repository's config.json as the hub does."""
    folder = tmp_path / "hub" / "me" / "new" / "resolve" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 9}'
    )
    handler = partial(_Quiet, directory=str(tmp_path / "hub"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


def test_the_hub_is_asked_for_the_config_alone_unless_it_is_off(tmp_path, hub):
    on = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "none")}
    found = find_model("me/new", Family.HF, cwd=tmp_path, environment=on)
    assert found.architecture.layers == 3
    assert found.source == f"{hub}/me/new/resolve/main/config.json"
    for name, environment in (("me/new", {**on, "HF_HUB_OFFLINE": "1"}), ("me/other", on)):
        with pytest.raises(ConfigError):
            find_model(name, Family.HF, cwd=tmp_path, environment=environment)


def test_litgpts_own_names_are_asked_for_what_is_not_carried(tmp_path):
    def ask(name: str) -> dict[str, object]:
        return {"name": name, "n_layer": 1, "n_embd": 8, "n_head": 1}

    found = find_model(
        "checkpoints/new/model", Family.LITGPT, cwd=tmp_path, environment=OFFLINE, ask_framework=ask
    )
    assert found.architecture.layers == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("meta-llama/Llama-2-8b", "Did you mean"),
        ("me/unheard-of-7b", "config.json"),
        (None, "Set model_name_or_path"),
    ],
)
def test_an_unknown_model_says_what_to_give(name, hint):
    with pytest.raises(ConfigError) as caught:
        find_model(name, Family.HF, cwd=Path("/nonexistent"), environment=OFFLINE)
    assert hint in caught.value.next_step


def test_a_broken_config_names_its_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        find_model(".", Family.HF, cwd=tmp_path, environment=OFFLINE)
    assert caught.value.where is not None
    assert caught.value.where.file == str(tmp_path / "config.json")


def test_a_config_without_sizes_says_which_is_missing():
    with pytest.raises(ConfigError, match="hidden_size"):
        from_config({"model_type": "llama"})
