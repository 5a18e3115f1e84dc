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

COUNTS = json.loads(
    (Path(__file__).parents[1] / "data/published_parameters.json").read_text(encoding="utf-8")
)
PUBLISHED = COUNTS["billions"]


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameters_add_up_to_the_published_ones(name, billions):
    found = transformers_config(name)
    assert found is not None
    rounded = 0.5 * 10 ** -len(billions.partition(".")[2])
    published = float(billions)
    assert found.architecture.parameters / 1e9 == pytest.approx(
        published, abs=rounded + 0.012 * published
    )


def test_every_link_is_that_of_a_count():
    assert COUNTS["links"].keys() <= PUBLISHED.keys()
    assert all(link.startswith("https://") for link in COUNTS["links"].values())


def test_every_carried_model_has_a_published_count():
    assert {one.name for one in carried()} == {transformers_config(one).name for one in PUBLISHED}


def test_a_counted_total_is_what_is_planned_with():
    falcon = transformers_config("tiiuae/Falcon-H1-7B-Instruct")
    assert falcon is not None
    assert falcon.architecture.parameters == falcon.parameters == 7_585_513_568
    counted = from_config(falcon.config).parameters
    assert falcon.architecture.uncounted == falcon.parameters - counted


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
        assert one.architecture.parameters > 10**7
        assert one.architecture.decoder > one.architecture.embedding


def test_other_makers_copies_and_local_folders_are_found_by_name(tmp_path):
    for name in ("unsloth/llama-3-8b-bnb-4bit", "/data/models/Meta-Llama-3-8B", "./llama-3-8b"):
        found = find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE)
        assert found.architecture.parameters == 8_030_261_248


@pytest.mark.parametrize(
    ("name", "taken_for"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", None),  # its maker's variants have one shape
        ("/data/models/Meta-Llama-3-8B", None),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", None),
        ("unsloth/llama-3-8b-bnb-4bit", "meta-llama/Meta-Llama-3-8B"),
        ("Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-7B"),
        ("me/Mistral-7B-v0.3-sft", "mistralai/Mistral-7B-v0.3"),
    ],
)
def test_a_loose_match_says_what_the_name_was_taken_for(tmp_path, name, taken_for):
    assert find_model(name, Family.HF, cwd=tmp_path, environment=OFFLINE).taken_for == taken_for


def test_a_copy_in_another_format_is_not_stored_as_the_original():
    original, copy = map(transformers_config, ("openai/gpt-oss-20b", "unsloth/gpt-oss-20b-BF16"))
    assert original is not None
    assert copy is not None
    assert original.config["quantization_config"]["quant_method"] == "mxfp4"
    assert "quantization_config" not in copy.config
    assert copy.architecture == original.architecture


@pytest.mark.parametrize(
    ("name", "taken_for"),
    [
        ("models--meta-llama--Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr", "EleutherAI/pythia-1b"),
        ("Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-4B"),
        ("unsloth/Qwen3-VL-8B-Instruct-FP8", "Qwen/Qwen3-VL-8B"),
    ],
)
def test_spellings_of_caches_and_copies_are_known(name, taken_for):
    found = transformers_config(name)
    assert found is not None
    assert found.name == taken_for


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
