"""Kernels that compute an adapter with its matrix: what they keep, and where they do not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frameworks.tiny_models import ARCEE, LLAMA, MIXTRAL, PHI, QWEN3
from oomguard.estimate.architecture import from_config
from oomguard.estimate.fused_lora import fused_lora
from oomguard.job.memory_settings import ALL_LINEAR, FusedPart, Lora, LoraKernels, MemorySettings
from oomguard.job.plan import Plan, Precision, Quantization, Sharding, Tuning
from shapes import LLAMA3, problem

ALL = frozenset(FusedPart)
FEW, TWO = ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj")
ROWS, LENGTH, LAYERS = 2, 512, 6
TOKENS = ROWS * LENGTH
#: Real steps with axolotl 0.19.0 on the CPU: what frameworks/lora_kernels_truth.py prints.
_FILE = Path(__file__).parents[1] / "data" / "lora_kernels.json"
MEASURED = {row["name"]: row for row in json.loads(_FILE.read_text())}


def adapter(parts=ALL, targets=(ALL_LINEAR,), **own) -> Lora:
    kernels = LoraKernels(parts=frozenset(parts), since=("axolotl", (0, 16))) if parts else None
    return Lora(rank=8, alpha=8, targets=targets, fused=kernels, **own)


def measured_step(config, lora, **changes):
    """Return the step that frameworks/lora_kernels_truth.py measures."""
    sizes = {"vocab_size": 64, "num_hidden_layers": LAYERS, "num_key_value_heads": 8}
    plan = Plan(
        micro_batch=ROWS,
        accumulation=1,
        sequence_length=LENGTH,
        precision=Precision.BF16_TRUE,
        quantization=Quantization.NONE,
        tuning=Tuning.LORA,
        checkpointing=True,
    )
    recipe = MemorySettings(lora=lora, autocasts=True)
    return problem(plan, recipe, from_config(config | sizes), **changes).step


def most(step) -> int:
    """Return what stands while the last layer goes backward."""
    return step.kept + step.layer + step.working


@pytest.mark.parametrize(
    ("name", "config", "lora"),
    [
        ("none", LLAMA, adapter(())),
        ("all", LLAMA, adapter()),
        ("mlp", LLAMA, adapter({FusedPart.MLP})),
        ("qkv", LLAMA, adapter({FusedPart.ATTENTION})),
        ("o", LLAMA, adapter({FusedPart.OUTPUT})),
        ("none attention", LLAMA, adapter((), FEW)),
        ("all attention", LLAMA, adapter(ALL, FEW)),
        ("none two", LLAMA, adapter((), TWO)),
        ("all two", LLAMA, adapter(ALL, TWO)),
        ("none ungated", ARCEE, adapter(())),
        ("all ungated", ARCEE, adapter()),
        ("none qwen3", QWEN3, adapter(())),  # whose queries and keys have norms of their own
        ("all qwen3", QWEN3, adapter()),
    ],
)
def test_a_layer_keeps_what_axolotls_kernels_were_measured_to_keep(name, config, lora):
    step, measured = measured_step(config, lora), MEASURED[name]
    assert step.layer == pytest.approx(measured["kept_bytes"], rel=0.02)
    assert most(step) == pytest.approx(measured["peak_bytes"], rel=0.09)


def test_dropout_adds_its_result_and_a_mask_to_each_input():
    plain, dropped = (measured_step(LLAMA, adapter(dropout=drop)) for drop in (0.0, 0.1))
    assert dropped.layer - plain.layer == TOKENS * 3 * 256 * (2 + 1)
    on_cpu = dropped.layer + TOKENS * 3 * 256  # where a mask has 2 bytes a number
    assert on_cpu == pytest.approx(MEASURED["all dropout"]["kept_bytes"], rel=0.002)


@pytest.mark.parametrize(
    ("config", "targets", "parts"),
    [
        (LLAMA, (ALL_LINEAR,), ALL),
        (LLAMA, (*TWO, "gate_proj", "up_proj"), ()),
        (LLAMA, (*FEW, "gate_proj", "up_proj"), {FusedPart.ATTENTION, FusedPart.OUTPUT}),
        (MIXTRAL, (ALL_LINEAR,), {FusedPart.ATTENTION, FusedPart.OUTPUT}),
        (ARCEE, (ALL_LINEAR,), {FusedPart.ATTENTION, FusedPart.OUTPUT}),
        (PHI | {"model_type": "phi3"}, (ALL_LINEAR,), ()),
    ],
)
def test_a_part_is_fused_where_all_its_matrices_are_there_and_adapted(config, targets, parts):
    found = fused_lora(from_config(config), measured_step(LLAMA, None).plan, adapter(ALL, targets))
    assert found.parts == {*parts}


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, True),
        ({"quantization": Quantization.NF4_DOUBLE}, True),
        ({"sharding": Sharding.ZERO2}, True),
        ({"quantization": Quantization.INT8}, False),
        ({"sharding": Sharding.ZERO3}, False),
        ({"sharding": Sharding.FSDP}, False),
        ({"tuning": Tuning.FULL}, False),
    ],
)
def test_kernels_do_not_run_over_8_bits_or_sharded_weights(change, runs):
    plan = replace(measured_step(LLAMA, None).plan, **change)
    assert (fused_lora(LLAMA3, plan, adapter()).parts == ALL) is runs
