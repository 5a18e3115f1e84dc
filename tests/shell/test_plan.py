"""`oomguard plan` as a user calls it, by arithmetic alone: no torch is in this environment."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from oomguard.cli.main import main
from oomguard.units import GIB
from shapes import LLAMA_YAML

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_tracer(monkeypatch):
    """Leave it to arithmetic, whether this Python has torch (`make quickstart`) or not."""
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)


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
    assert "It fits after strategy" in said.out
    assert index.read_bytes() == b"no database at all"


def test_the_first_fit_leaves_out_the_costly_changes_that_it_does_not_need(plan):
    """The peak is in the optimizer's step: fewer pixels and frozen parts do not lower it."""
    document = plan(RECIPES / "llamafactory" / "qwen2_5_vl.yaml", "--gpu", "a10")
    cheapest, asked = document["cheapest"], document["asked"]["plan"]
    passed = [r for r in document["rungs"][: document["chosen"] + 1] if r["plan"]]
    assert {"cut_media_pixels", "projector_only"} <= set(cheapest["undone"])
    assert {step["fidelity"] for step in cheapest["steps"]} == {"same_math"}
    kept = {key: cheapest["plan"][key] for key in ("image_pixels", "frozen", "precision")}
    assert kept == {key: asked[key] for key in kept}
    assert sorted([*cheapest["path"], *cheapest["undone"]]) == sorted(r["strategy"] for r in passed)
    assert cheapest["estimate"]["high_bytes"] <= document["capacity_bytes"]


def test_where_every_change_is_needed_nothing_is_left_out(plan, train):
    document = plan(train, "--gpu", "RTX 3090")
    assert document["chosen"] is not None
    assert document["cheapest"] is None


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


UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "M": 10**6}
#: Terms that are a count times a size.
COUNTED = {"weights", "adapter", "trained_embeddings", "gradients", "optimizer", "media_towers"}
#: Terms that are a size per token, logit or allocated byte.
PER_UNIT = {"activations", "logits_and_loss", "attention_workspace", "allocator_slack"}


def product(text: str) -> float:
    """Multiply and add what a line of --explain-terms shows."""
    formula = re.sub(r"\([^)]*\)", "", text.rpartition(" = ")[0])
    total = 0.0
    for addend in formula.split(" + "):
        factors = [factor.split() for factor in addend.split(" x ")]
        total += math.prod(
            float(number) * UNITS.get(unit[0] if unit else "", 1) for number, *unit in factors
        )
    return total


def size_of(text: str) -> float:
    number, unit = text.rpartition(" = ")[2].split()
    return float(number) * UNITS[unit]


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("gpu", ["3090", "h100"])
@pytest.mark.parametrize(
    "recipe",
    [
        "litgpt/train.yaml", "torchtune/train.yaml", "qwen/train.yaml", "peft_loftq/train.yaml",
        "llamafactory/qwen2_audio.yaml", "llamafactory/qwen2_5_vl.yaml", "hf_trainer/trl.yaml",
    ],
)  # fmt: skip
def test_each_product_is_the_bytes_of_its_term(plan, recipe, gpu, gpus):
    document = plan(RECIPES / recipe, "--gpu", gpu, "--gpus", gpus, "--explain-terms")
    chosen = document["chosen"]
    first = document["asked"] if chosen is None else document["rungs"][chosen]
    terms = (document["cheapest"] or first)["estimate"]["terms"]
    assert set(document["arithmetic"]) == set(terms)
    assert (COUNTED | PER_UNIT) & set(terms)
    for term, text in document["arithmetic"].items():
        assert size_of(text) == pytest.approx(terms[term], rel=0.01), (term, text)
        if term in COUNTED | PER_UNIT:
            assert product(text) == pytest.approx(terms[term], rel=0.005), (term, text)


def test_a_product_that_is_wrong_would_be_seen():
    assert product("2 x 4 B x 6738 M x 0.5 (per GPU) + 1.5 GiB (more) = 26.6 GiB") == (
        2 * 4 * 6738e6 * 0.5 + 1.5 * GIB
    )
    assert product("32 layers x 10 tokens x 8 KiB per token (checkpointed) = 2.5 MiB") == 2560 << 10


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ("", "LoRA r=8 on all linear layers"),
        ("lora_target: q_proj,v_proj\nlora_rank: 16\n", "LoRA r=16 on q_proj, v_proj"),
        ("quantization_bit: 4\n", "QLoRA nf4-double r=8 on all linear layers"),
        ("finetuning_type: full\n", "full fine-tuning"),
        ("finetuning_type: freeze\n", "freeze (the last 2 layers are trained)"),
        (
            "finetuning_type: freeze\nfreeze_trainable_layers: -3\n",
            "freeze (the first 3 layers are trained)",
        ),
    ],
)
def test_what_is_trained_is_stated_with_its_parameters(plan, capsys, train, changes, what):
    replaced = {line.split(":")[0] for line in changes.splitlines()}
    kept = [line for line in LLAMA_YAML.splitlines() if line.split(":")[0] not in replaced]
    train.write_text("\n".join([*kept, changes]))
    document = plan(train, "--gpu", "h100")
    assert document["trained"]["what"] == what
    share = document["trained"]["parameters"] / document["trained"]["total"]
    assert main(["plan", str(train), "--gpu", "h100"]) == 0
    text = capsys.readouterr().out
    assert f"trained: {what}: " in text
    assert f"M parameters ({share:.2%})" in text


def test_the_text_puts_the_verdict_first_then_the_terms_then_the_ladder(capsys, train):
    assert main(["plan", str(train), "--gpu", "3090", "--explain-terms"]) == 0
    text = capsys.readouterr().out
    in_order = [
        "The requested config does not fit",
        "It fits after strategy",
        "[same math]",
        "requested config:",
        "█",
        "2 B x 8030 M = 14.96 GiB",
        "  1 ",
        "--verbose lists the reasons",
        "note: estimates are analytic",
    ]
    assert [text.index(part) for part in in_order] == sorted(text.index(part) for part in in_order)
    notes = [line for line in text.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes))


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
        (["--gpu", "3090", "--gpu-memory", "24GiB"], "--gpu"),
        (["--gpu", "A100"], "A100"),
    ],
)
def test_a_gpu_that_is_not_clear_is_an_error(plan, train, words, what):
    document = plan(train, *words, code=2)
    assert what in document["error"]["what"]


def test_a_job_on_the_cpu_is_not_planned_for_a_gpu(plan, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA_YAML + "use_cpu: true\n")
    assert "CPU" in plan(file, "--gpu", "3090", code=2)["error"]["what"]


def test_an_unknown_model_is_an_error_that_says_what_to_give(plan, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA_YAML.replace("meta-llama/Meta-Llama-3-8B", "me/unheard-of"))
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
