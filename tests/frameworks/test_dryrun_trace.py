"""The dry run with real models: by hand, against real runs, over depth, and with media."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import environment
from tiny_models import LOOPED_EXPERTS, MIXTRAL, QWEN_AUDIO, QWEN_VL, TEXT

import oomguard.tracer

pytestmark = pytest.mark.frameworks

MIB, GIB = 2**20, 2**30
LLAMA_3_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
ALL = {"rank": 8, "alpha": 16, "targets": "all-linear"}
PLAN = {"micro_batch": 1, "accumulation": 1, "sequence_length": 2048, "precision": "bf16-true",
        "tuning": "lora", "checkpointing": True}  # fmt: skip


def ask(config, *variants, name="hf", capacity_bytes=None, family="hf"):
    """Ask the dry run about (plan, recipe) pairs in one process."""
    document = {
        "v": 1, "model": {"family": family, "config": config}, "capacity_bytes": capacity_bytes,
        "variants": [
            {"id": str(number), "plan": PLAN | plan, "recipe": {"lora": ALL} | recipe}
            for number, (plan, recipe) in enumerate(variants)
        ],
    }  # fmt: skip
    done = run(name, "-m", "oomguard_tracer", stdin=json.dumps(document))
    return json.loads(done)["results"]


def run(name, *arguments, stdin=""):
    done = subprocess.run(
        [str(environment(name)), "-W", "ignore", *arguments], input=stdin, text=True, check=False,
        capture_output=True, env=os.environ | {"PYTHONPATH": oomguard.tracer.PYTHONPATH},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_llama_3_8b_is_what_a_hand_calculates_term_by_term():
    (answer,) = ask(LLAMA_3_8B, ({}, {}), capacity_bytes=24 * GIB)
    terms = answer["estimate"]["terms"]
    hidden = 2048 * 4096 * 2
    adapter = 4 * 8 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    logits = 3 * 2048 * 128256 * 4  # softmax's output, and two gradients
    base = 2 * 8030261248 + 4 * 64  # bfloat16, and the rotary frequencies
    assert terms["weights"] == pytest.approx(base + adapter, rel=1e-4)
    assert terms["optimizer"] == pytest.approx(2 * adapter, rel=1e-3)
    assert terms["logits_and_loss"] == pytest.approx(logits, rel=2e-3)
    assert terms["activations"] == pytest.approx(33 * hidden + 16 * MIB, rel=0.02)
    assert answer["estimate"]["allocated_bytes"] == pytest.approx(18.664 * GIB, rel=2e-3)
    assert answer["fits_replay"] is True
    assert sum(terms.values()) == answer["estimate"]["reserved_bytes"]


#: How LLaMA-Factory trains: reentrant checkpointing, and trained weights in fp32.
FACTORY = {
    "loop": "trainer", "use_reentrant": True, "checkpoints_trained_layers": True,
    "weights_dtype": "bf16", "trainable_dtype": "fp32",
}  # fmt: skip
VARIANTS = {
    "full": ({"tuning": "full"}, {"lora": None}),
    "no checkpointing": ({"checkpointing": False}, {}),
    "reentrant": ({}, {"use_reentrant": True}),
    "nf4": ({"quantization": "nf4-double", "precision": "bf16-mixed"},
            FACTORY),
    "int8": ({"quantization": "int8", "precision": "fp16-mixed"},
             FACTORY | {"weights_dtype": "fp16"}),
    "accumulation": ({"accumulation": 4, "tuning": "full"}, {"lora": None}),
    "8-bit optimizer": ({"tuning": "full", "optimizer": "adamw_8bit"}, {"lora": None}),
    "fused loss": ({"loss_kernel": "fused"}, {}),
    "padding": ({"micro_batch": 2}, {"lengths": [[100, 300], [200, 500]]}),
    "eager attention": ({"sequence_length": 512}, {"attention": "eager"}),
}  # fmt: skip


def test_a_few_layers_say_the_same_as_all_layers():
    config = TEXT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
                     "num_hidden_layers": 9}  # fmt: skip
    plans = list(VARIANTS.values())
    few = ask(config, *plans)
    every = ask(config, *[(plan, recipe | {"full_depth": True}) for plan, recipe in plans])
    for name, one, other in zip(VARIANTS, few, every, strict=True):
        assert one["estimate"].pop("method") == "trace-extrapolated", name
        assert other["estimate"].pop("method") == "trace", name
        assert one["estimate"] == other["estimate"], name


def test_layers_of_several_kinds_are_taken_by_whole_periods():
    config = TEXT | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
                     "num_hidden_layers": 34, "head_dim": 32, "sliding_window": 512}  # fmt: skip
    few, every = ask(config, ({}, {}), ({}, {"full_depth": True}))
    assert few["estimate"]["method"] == "trace-extrapolated"
    assert few["estimate"]["terms"] == every["estimate"]["terms"]


DEEP_VISION = QWEN_VL["vision_config"] | {"depth": 14, "fullatt_block_indexes": [4, 13]}
DEEP_AUDIO = QWEN_AUDIO["audio_config"] | {"encoder_layers": 9}
TOWERS = {
    "windows": (QWEN_VL | {"vision_config": DEEP_VISION}, {"images": [[560, 560], [280, 420]]}),
    "all alike": (QWEN_AUDIO | {"audio_config": DEEP_AUDIO}, {"audio_seconds": 30}),
}


@pytest.mark.parametrize("name", ["windows", pytest.param("all alike", marks=pytest.mark.extended)])
@pytest.mark.parametrize("frozen", [(), ("vision_tower", "projector")], ids=["trained", "frozen"])
def test_a_few_layers_of_a_tower_say_the_same_as_all(name, frozen):
    config, media = TOWERS[name]
    plan = {"frozen": list(frozen), "sequence_length": 1024}
    recipe = FACTORY | {"media": media}
    few, every = ask(config, (plan, recipe), (plan, recipe | {"full_depth": True}))
    assert few["estimate"]["method"] == "trace-extrapolated"
    assert few["estimate"]["allocated_bytes"] == pytest.approx(
        every["estimate"]["allocated_bytes"], rel=1e-3
    )
    for term, size_bytes in every["estimate"]["terms"].items():
        if term != "allocator_slack":
            assert few["estimate"]["terms"][term] == pytest.approx(size_bytes, rel=5e-3), term


@pytest.mark.parametrize("name", [pytest.param("hf", marks=pytest.mark.extended), "llamafactory"])
def test_a_real_run_on_the_cpu_peaks_within_two_percent_of_its_trace(name):
    script = Path(__file__).with_name("dryrun_truth.py")
    found = json.loads(run(name, str(script)).splitlines()[-1])
    assert len(found) >= {"hf": 20, "llamafactory": 3}[name]
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.02), case["name"]


@pytest.mark.extended
def test_layers_that_the_arithmetic_does_not_know_take_what_their_trace_says():
    script = Path(__file__).with_name("dryrun_truth.py")
    found = json.loads(run("hf", str(script), "others").splitlines()[-1])
    assert len(found) >= 12
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.02), case["name"]


def test_images_and_audio_show_as_towers_and_take_room_in_the_text():
    frozen = {"frozen": ["vision_tower", "projector"], "sequence_length": 1024}
    with_images, without = ask(
        QWEN_VL, (frozen, {"media": {"images": [[560, 560], [280, 420]]}}), (frozen, {})
    )
    shown, hidden = (result["estimate"]["terms"] for result in (with_images, without))
    assert shown["vision_tower"] >= hidden["vision_tower"] > 0
    (audio,) = ask(QWEN_AUDIO, (frozen, {"media": {"audio_seconds": 30}}))
    assert audio["estimate"]["terms"]["audio_tower"] > 0


def test_a_few_windows_stand_for_the_many_of_a_tower():
    document = {
        "v": 1, "model": {"family": "hf", "config": QWEN_VL},
        "variants": [{"id": "x", "plan": PLAN | {"checkpointing": False, "tuning": "full"},
                      "recipe": {"media": {"images": [[560, 560]]}}}],
    }  # fmt: skip
    stdin = json.dumps(document)
    few = json.loads(run("hf", "-m", "oomguard_tracer", stdin=stdin))
    every = (
        "import sys; from oomguard_tracer import __main__ as program, media; "
        "media.WINDOWS = sys.maxsize; program.main()"
    )
    many = json.loads(run("hf", "-c", every, stdin=stdin))
    peaks = [answer["results"][0]["estimate"]["allocated_bytes"] for answer in (few, many)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.005)
    towers = [answer["results"][0]["estimate"]["terms"]["vision_tower"] for answer in (few, many)]
    assert towers[0] == pytest.approx(towers[1], rel=0.01)


def test_media_that_the_text_has_no_room_for_are_named():
    (answer,) = ask(QWEN_VL, ({"sequence_length": 64}, {"media": {"images": [[560, 560]]}}))
    assert answer["error"] == {
        "kind": "unsupported", "message": "the media need 401 tokens and the text has 64",
    }  # fmt: skip


def test_experts_are_traced_in_every_format_one_by_one_or_all_at_once():
    plan = {"tuning": "full", "sequence_length": 512, "checkpointing": False, "optimizer": "sgd"}
    words = ("fp32", "bf16-mixed", "bf16-true")
    formats = [(plan | {"precision": word}, {"lora": None}) for word in words]
    for config in (MIXTRAL, MIXTRAL | LOOPED_EXPERTS):
        wide, mixed, narrow = (answer["estimate"]["terms"] for answer in ask(config, *formats))
        assert mixed["weights"] == wide["weights"]
        assert narrow["weights"] == pytest.approx(wide["weights"] / 2, rel=1e-3)
        assert narrow["activations"] < wide["activations"]


def test_new_tokens_train_the_embeddings_and_say_so_in_bytes():
    config = TEXT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    plan = {"precision": "bf16-mixed", "sequence_length": 128}
    recipe = FACTORY | {"new_tokens": 64}
    plain, grown = ask(config, (plan, FACTORY), (plan, recipe))
    rows = (8192 + 64) * 256
    assert "trained_embeddings" not in plain["estimate"]["terms"]
    # Float32 weights, gradients and two moments of the embedding and of the head.
    assert grown["estimate"]["terms"]["trained_embeddings"] >= 2 * 3 * 4 * rows


def test_a_hidden_state_as_wide_as_the_text_is_long_is_no_attention_score():
    config = TEXT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    plan = {"sequence_length": TEXT["hidden_size"], "micro_batch": 2, "checkpointing": False}
    fused, eager = ask(config, (plan, {}), (plan, {"attention": "eager"}))
    assert "attention_workspace" not in fused["estimate"]["terms"]
    assert eager["estimate"]["terms"]["attention_workspace"] > 0


def test_a_head_that_peft_has_wrapped_is_still_where_the_logits_are():
    config = TEXT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
                     "num_hidden_layers": 9}  # fmt: skip
    saved = ALL | {"modules_to_save": ["embed_tokens", "lm_head"]}
    recipe = FACTORY | {"new_tokens": 64, "lora": saved}
    plan = {"precision": "bf16-mixed", "sequence_length": 512}
    few, every = ask(config, (plan, recipe), (plan, recipe | {"full_depth": True}))
    assert few["estimate"]["method"] == "trace-extrapolated"
    assert few["estimate"]["terms"] == every["estimate"]["terms"]
    assert few["estimate"]["terms"]["logits_and_loss"] > 512 * (8192 + 64) * 4


def test_a_cache_of_keys_and_values_lives_with_the_outputs_that_hold_it():
    tokens, width, layers = 512, 256, 4
    config = LLAMA_3_8B | {
        "vocab_size": 1000, "hidden_size": width, "intermediate_size": 512,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    plan = {"sequence_length": tokens, "tuning": "full", "checkpointing": False,
            "precision": "fp32"}  # fmt: skip
    recipe = {"lora": None, "eval_only": True}
    without, kept = ask(config, (plan, recipe), (plan, recipe | {"use_cache": True}))
    more = kept["estimate"]["allocated_bytes"] - without["estimate"]["allocated_bytes"]
    cache = layers * 2 * tokens * width * 4
    assert more == 2 * cache  # this batch's, and the one's before it


def test_litgpt_by_its_own_name_and_four_bits():
    lora = {"rank": 8, "alpha": 16, "targets": ["query", "value"]}
    recipe = {"loop": "keeps-logits", "lora": lora, "lengths": [[256], [64]]}
    plan = {"checkpointing": False, "sequence_length": 256}
    whole, packed, doubled = ask(
        {"name": "pythia-160m"}, (plan, recipe),
        (plan | {"quantization": "nf4", "optimizer": "paged_adamw"}, recipe),
        (plan | {"quantization": "int8", "precision": "fp16-true"}, recipe),
        name="litgpt", family="litgpt",
    )  # fmt: skip
    assert packed["estimate"]["terms"]["weights"] < whole["estimate"]["terms"]["weights"]
    assert packed["estimate"]["terms"]["quantization"] > 0
    # int8-training keeps the 16-bit weights.
    assert doubled["estimate"]["terms"]["weights"] > whole["estimate"]["terms"]["weights"]


def test_what_cannot_be_read_or_built_is_an_answer_and_not_a_traceback():
    answer = json.loads(run("hf", "-m", "oomguard_tracer", stdin='{"v": 2}'))
    assert answer["error"]["kind"] == "request"
    (unknown,) = ask({"model_type": "no_such_model"}, ({}, {}))
    assert unknown["error"]["kind"] == "unsupported"
