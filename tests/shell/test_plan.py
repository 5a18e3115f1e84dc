"""`oomguard plan` as a user calls it, by arithmetic alone: no torch is in this environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomguard.cli.main import main
from oomguard.units import GIB

RECIPES = Path(__file__).parents[2] / "recipes"
LLAMA = """
model_name_or_path: meta-llama/Meta-Llama-3-8B
stage: sft
finetuning_type: lora
lora_target: all
dataset: alpaca
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
bf16: true
output_dir: out
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_tracer(monkeypatch):
    """Leave it to arithmetic, whether this Python has torch (`make quickstart`) or not."""
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)


@pytest.fixture
def plan(capsys):
    def run(*words: object, code: int = 0) -> dict:
        assert main(["plan", *map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def train(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA)
    return file


def test_the_document_has_what_the_design_names(plan, train):
    document = plan(train, "--gpu", "RTX 3090")
    assert document["framework"] == "llamafactory"
    assert document["capacity_bytes"] == int(23.69 * GIB)
    assert set(document["asked"]) == {"plan", "estimate", "fits"}
    estimate = document["asked"]["estimate"]
    assert set(estimate) >= {
        *("allocated_bytes", "reserved_bytes", "low_bytes", "expected_bytes", "high_bytes"),
        *("terms", "method"),
    }
    assert sum(estimate["terms"].values()) == estimate["expected_bytes"]
    assert estimate["method"] == "analytic"
    assert document["seconds"] < 30
    for rung in document["rungs"]:
        assert set(rung) >= {"strategy", "plan", "estimate", "fits", "skipped"}
        assert (rung["skipped"] is None) == (rung["plan"] is not None)
    assert document["asked"]["fits"] == "no"
    chosen = document["rungs"][document["chosen"]]
    assert chosen["fits"] == "yes"
    assert all(r["fits"] in ("no", "unsure", None) for r in document["rungs"][: document["chosen"]])


def test_an_index_of_fits_that_is_broken_is_said_and_costs_its_corrections_alone(
    capsys, train, tmp_path
):
    index = tmp_path / "fits.sqlite"
    index.write_bytes(b"no database at all")
    asked = ["plan", str(train), "--gpu", "RTX 3090", "--fits", str(index)]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert f"the history database {index} is not used" in said.err
    assert "The first that fits is" in said.out
    assert index.read_bytes() == b"no database at all"


def test_each_rung_builds_on_the_one_before_and_keeps_the_global_batch(plan, train):
    document = plan(train, "--gpu", "a100-80", "--ladder", "classic")
    taken = [rung["plan"] for rung in document["rungs"] if rung["plan"]]
    assert [p["micro_batch"] for p in taken[:3]] == [4, 2, 1]
    assert all(p["micro_batch"] * p["accumulation"] == 16 for p in taken)
    assert taken[-1]["quantization"] == "nf4-double"


def test_a_large_card_takes_it_as_asked(plan, train):
    document = plan(train, "--gpu-memory", "141GiB")
    assert (document["asked"]["fits"], document["chosen"]) == ("yes", None)


def test_a_tiny_card_takes_nothing(plan, train):
    document = plan(train, "--gpu-memory", "1GiB")
    assert (document["asked"]["fits"], document["chosen"]) == ("no", None)


def test_more_gpus_share_the_weights_under_zero3(plan, train):
    one, four = (plan(train, "--gpu", "3090", "--gpus", n, "--ladder", "classic") for n in (1, 4))
    assert one["asked"]["plan"]["accumulation"] == four["asked"]["plan"]["accumulation"]
    skipped = {r["strategy"]: r["skipped"] for r in one["rungs"] if r["skipped"]}
    assert "one process" in skipped["switch_to_zero3"]
    shared = next(r for r in four["rungs"] if r["strategy"] == "switch_to_zero3")
    whole = four["asked"]["estimate"]["terms"]["weights"]
    assert shared["estimate"]["terms"]["weights"] == pytest.approx(whole / 4, rel=0.01)


def test_the_arithmetic_of_the_chosen_plan_is_shown(plan, train):
    document = plan(train, "--gpu", "3090", "--explain-terms")
    chosen = document["rungs"][document["chosen"]]
    assert set(document["arithmetic"]) == set(chosen["estimate"]["terms"])
    assert "8.030 G numbers x 2 B" in document["arithmetic"]["weights"]


def test_the_text_says_what_fits_and_what_it_costs(capsys, train):
    assert main(["plan", str(train), "--gpu", "3090", "--explain-terms"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "█" in text
    assert "[same math]" in text
    assert "The first that fits is" in text
    assert "no Python here has what a trace needs" in text


def test_a_command_after_two_dashes_is_planned_without_its_program(plan):
    words = ["litgpt", "finetune_lora", "checkpoints/meta-llama/Meta-Llama-3-8B"]
    words += ["--precision", "bf16-true", "--train.max_seq_length", "512"]
    document = plan("--gpu", "a10", "--json", "--", *words, code=0)
    assert document["framework"] == "litgpt"
    assert document["asked"]["plan"]["sequence_length"] == 512


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--gpu", "RTX 3909"], "RTX 3909"),
        ([], "--gpu"),
        (["--gpu", "3090", "--gpu-memory", "24GiB"], "--gpu"),
        (["--gpu", "A100"], "A100"),
    ],
)
def test_a_gpu_that_is_not_clear_is_an_error(plan, train, words, what):
    document = plan(train, *words, code=2)
    assert what in document["error"]["what"]


def test_a_job_on_the_cpu_is_not_planned_for_a_gpu(plan, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA + "use_cpu: true\n")
    assert "CPU" in plan(file, "--gpu", "3090", code=2)["error"]["what"]


def test_an_unknown_model_is_an_error_that_says_what_to_give(plan, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA.replace("meta-llama/Meta-Llama-3-8B", "me/unheard-of"))
    document = plan(file, "--gpu", "3090", code=2)
    assert "config.json" in document["error"]["next"]


def test_qwen2_audio_names_the_trained_embeddings_in_bytes(plan):
    document = plan(RECIPES / "llamafactory" / "qwen2_audio.yaml", "--gpu", "RTX 3090")
    terms = document["asked"]["estimate"]["terms"]
    assert document["asked"]["fits"] == "no"
    # copy, gradient and two moments in fp32 of embedding and output head
    assert terms["trained_embeddings"] == pytest.approx(16 * 2 * 156_035 * 4096, rel=0.01)
    assert terms["trained_embeddings"] > max(
        size for term, size in terms.items() if term != "trained_embeddings"
    )


def test_new_tokens_on_a_quantized_base_are_refused_and_plan_says_so(plan, tmp_path):
    recipe = (RECIPES / "llamafactory" / "qwen2_audio.yaml").read_text()
    file = tmp_path / "train.yaml"
    file.write_text(recipe + "quantization_bit: 4\n")
    document = plan(file, "--gpu", "RTX 3090")
    assert "Cannot resize embedding layers of a quantized model." in document["notes"][0]


def test_qwen2_5_vl_in_full_needs_its_state_shared_out(plan):
    recipe = RECIPES / "llamafactory" / "qwen2_5_vl.yaml"
    document = plan(recipe, "--gpu", "a100-80", "--gpus", 8)
    assert document["asked"]["fits"] == "no"
    assert document["chosen"] is not None
    assert document["rungs"][document["chosen"]]["plan"]["sharding"] in ("zero2", "zero3")


def test_qwens_finetune_is_planned_under_zero2(plan):
    document = plan(RECIPES / "qwen" / "train.yaml", "--gpu", "a100-40", "--gpus", 2)
    assert document["framework"] == "qwen"
    assert document["asked"]["plan"]["sharding"] == "zero2"
    assert document["asked"]["fits"] == "yes"


@pytest.mark.parametrize("card", [["--gpu", "a10"], ["--gpu-memory", "24GiB"]])
def test_litgpt_on_a_24_gb_card_fits_in_4_bit_or_with_512_tokens(plan, card):
    recipe = RECIPES / "litgpt" / "train.yaml"
    quantized = plan(recipe, *card, "--ladder", "enable_qlora")
    assert quantized["asked"]["fits"] == "no"
    in_four_bit = next(rung for rung in quantized["rungs"] if rung["plan"])
    assert in_four_bit["plan"]["quantization"].startswith("nf4")
    assert in_four_bit["estimate"]["expected_bytes"] < quantized["capacity_bytes"]
    assert in_four_bit["fits"] in ("yes", "unsure")  # arithmetic is not sure; a trace is
    cut = plan(recipe, *card, "--ladder", "cut_cutoff_len")
    fitting = {r["plan"]["sequence_length"]: r["fits"] for r in cut["rungs"] if r["plan"]}
    assert fitting[512] == "yes"


def test_loftq_at_once_takes_more_host_memory_than_there_is_and_staged_does_not(plan):
    recipe = RECIPES / "peft_loftq" / "train.yaml"
    document = plan(recipe, "--gpu", "a100-40", "--host-memory", "83.5GB")
    assert document["asked"]["estimate"]["host_bytes"] > 83.5e9
    assert document["asked"]["fits"] == "no"
    chosen = document["rungs"][document["chosen"]]
    assert chosen["strategy"] == "stage_loftq"
    assert chosen["estimate"]["host_bytes"] < 6e9
