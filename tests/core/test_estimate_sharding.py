"""What ranks share out, number by number; tests/frameworks holds the same rules against ranks."""

from __future__ import annotations

import pytest

from oomguard.estimate import sharding
from oomguard.estimate.analytic import analytic, end_of_step_terms, static
from oomguard.estimate.combine import Traced, traced_terms
from oomguard.estimate.host import host_peak
from oomguard.estimate.memory import Term
from oomguard.job.memory_settings import Format, MemorySettings
from oomguard.job.plan import Offload, Precision, Sharding, Tuning
from shapes import FACTORY, LLAMA3, LORA, model, problem, replace

FULL = replace(
    LORA, tuning=Tuning.FULL, lora_rank=None, accumulation=1, optimizer="adamw_torch_fused"
)
RECIPE = MemorySettings(code=FACTORY.code, base=Format.BF16)
N = LLAMA3.parameters
LAYER = LLAMA3.layer_linear + LLAMA3.layer_small
SHORT = 64  # tokens: what stands in memory outweighs what a step works with


def sharded(kind: Sharding, ranks: int = 8, recipe: MemorySettings = RECIPE, **changes: object):
    return problem(FULL, recipe, ranks=ranks, sharding=kind, **changes)


def moments(kind: Sharding, **changes: object) -> tuple[dict[Term, int], dict[Term, int]]:
    end, step = end_of_step_terms(sharded(kind, **changes))
    return end, step


def test_zero2_gathers_in_place_and_has_a_second_bucket_where_it_overlaps():
    assert static(sharded(Sharding.ZERO2))[Term.ZERO_BUCKETS] == 2 * LLAMA3.hidden**2
    stated = replace(RECIPE, reduce_bucket=200_000_000)
    one = sharded(Sharding.ZERO2, recipe=stated)
    two = sharded(Sharding.ZERO2, recipe=replace(stated, overlap_comm=True))
    assert static(one)[Term.ZERO_BUCKETS] == 2 * 200_000_000
    assert static(two)[Term.ZERO_BUCKETS] == 2 * static(one)[Term.ZERO_BUCKETS]


@pytest.mark.parametrize(
    ("optimizer", "each"),
    [("adamw_torch_fused", 2 + 4), ("adamw_torch", 4 + 4)],  # flat and cast; cast and foreach's
)
def test_deepspeeds_optimizer_flattens_and_casts_the_gradients_of_its_part(optimizer, each):
    _, step = moments(Sharding.ZERO2, optimizer=optimizer)
    assert step[Term.OPTIMIZER] == each * (N // 8)
    assert step[Term.GRADIENTS] == 2 * N // 8
    asked = sharded(Sharding.ZERO2, optimizer=optimizer, sequence_length=SHORT)
    assert analytic(asked)[Term.OPTIMIZER] == pytest.approx((12 + each) * N / 8, rel=1e-6)


def test_in_fp32_the_flat_gradients_need_no_cast_and_there_is_a_master_copy_all_the_same():
    in_fp32 = replace(RECIPE, base=None)
    asked = sharded(Sharding.ZERO2, recipe=in_fp32, precision=Precision.FP32)
    _, step = end_of_step_terms(asked)
    assert step[Term.OPTIMIZER] == 4 * (N // 8)
    assert static(asked)[Term.OPTIMIZER] == 12 * N // 8
    assert static(asked)[Term.ZERO_BUCKETS] == 4 * LLAMA3.hidden**2


def test_zero3_updates_a_billion_numbers_at_a_time():
    _, step = moments(Sharding.ZERO3, ranks=2)
    assert N // 2 > 1_000_000_000
    assert step[Term.OPTIMIZER] == 6 * 1_000_000_000


def test_gradients_of_earlier_micro_batches():
    def shares(kind: Sharding, accumulation: int) -> tuple[float, float, float]:
        plan = replace(FULL, sharding=kind, accumulation=accumulation)
        found = sharding.rank_fractions(plan, 4)
        return found.before, found.gradients, found.after

    assert shares(Sharding.NONE, 1) == (0, 1, 1)
    assert shares(Sharding.NONE, 2) == (1, 1, 1)
    assert shares(Sharding.ZERO1, 1) == (0, 1, 1 / 4)
    assert shares(Sharding.ZERO1, 2) == (1, 1 + 1 / 4, 1 / 4)
    assert shares(Sharding.ZERO2, 1) == (0, 1 / 4, 1 / 4)
    assert shares(Sharding.ZERO2, 2) == (1 / 4, 2 / 4, 1 / 4)
    for accumulation in (1, 2):  # one buffer, from the start
        assert shares(Sharding.ZERO3, accumulation) == (1 / 4, 1 / 4, 1 / 4)
    assert shares(Sharding.FSDP, 1) == (0, 1 / 4, 1 / 4)


@pytest.mark.parametrize("kind", [Sharding.ZERO2, Sharding.ZERO3])
def test_an_offloaded_optimizer_leaves_no_gradients_on_the_gpu(kind):
    asked = sharded(kind, offload=frozenset({Offload.OPTIMIZER}), accumulation=2)
    terms = analytic(asked)
    assert terms.get(Term.OPTIMIZER, 0) == terms.get(Term.GRADIENTS, 0) == 0
    assert host_peak(asked)["offloaded"] == pytest.approx(18 * N, rel=1e-6)


def test_zero2_stages_a_gradient_that_it_offloads():
    here = sharded(Sharding.ZERO2)
    there = sharded(Sharding.ZERO2, offload=frozenset({Offload.OPTIMIZER}))
    staged = static(there)[Term.ZERO_BUCKETS] - static(here)[Term.ZERO_BUCKETS]
    assert staged == (2 + 2 + 4) * LLAMA3.embedding  # buffer, gradient, its copy in fp32


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # DeepSpeed's stage3_max_live_parameters, and the layer at work
        ("meta-llama/Llama-2-7b-hf", 1_000_000_000 + 202_383_360),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_000_000_000 + 44_044_288),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),  # all there is
    ],
)
def test_zero3_gathers_ahead_until_a_billion_numbers_are_there(name, numbers):
    shape = model(name)
    plan = replace(FULL, sharding=Sharding.ZERO3)
    layer = 2 * (shape.layer_linear + shape.layer_small)
    found = sharding.gathered(shape, plan, layer_bytes=layer, size=2)
    assert found == pytest.approx(2 * numbers, rel=1e-4)


def test_llama_2_7b_under_zero3_on_eight_gpus_by_hand():
    shape = model("meta-llama/Llama-2-7b-hf")
    plan = replace(FULL, sharding=Sharding.ZERO3, sequence_length=SHORT)
    asked = problem(plan, RECIPE, shape, ranks=8)
    numbers = 6_738_415_616
    held = static(asked)
    assert held[Term.WEIGHTS] == 2 * numbers // 8
    assert held[Term.OPTIMIZER] == 12 * numbers // 8
    assert held[Term.ZERO_BUCKETS] == 2 * 4096**2
    _, step = end_of_step_terms(asked)
    assert step[Term.GRADIENTS] == 2 * numbers // 8
    assert step[Term.OPTIMIZER] == 6 * (numbers // 8)


def test_fsdp_gathers_in_16_bits_what_it_shards_in_fp32():
    asked = sharded(Sharding.FSDP)
    held = static(asked)
    assert held[Term.WEIGHTS] == 4 * N // 8
    assert held[Term.OPTIMIZER] == 8 * N // 8
    outside = LLAMA3.embedding + LLAMA3.head
    found = sharding.gathered(LLAMA3, asked.plan, layer_bytes=2 * LAYER, size=2)
    assert found == 2 * (outside + 2 * LAYER)
    end, _ = end_of_step_terms(asked)  # gradients of embedding and head wait for each other
    assert end[Term.ZERO_BUCKETS] == 2 * 2 * outside
    assert end[Term.GRADIENTS] == 4 * N // 8
    # no casts of weights beside the gathered ones
    same = analytic(sharded(Sharding.ZERO3, sequence_length=8192))[Term.ACTIVATIONS]
    assert analytic(sharded(Sharding.FSDP, sequence_length=8192))[Term.ACTIVATIONS] == same


@pytest.mark.parametrize("kind", [Sharding.ZERO2, Sharding.ZERO3, Sharding.FSDP])
def test_a_traced_step_that_works_with_little_peaks_when_all_gradients_are_there(kind):
    asked = sharded(kind, sequence_length=SHORT)
    least = Traced(
        allocated_bytes=1 << 20,
        reserved_bytes=1 << 20,
        reserved_expandable_bytes=1 << 20,
        terms={"activations": 1 << 20},
        method="trace",
    )
    found = traced_terms(least, asked)
    assert found[Term.GRADIENTS] == pytest.approx((4 if kind is Sharding.FSDP else 2) * N / 8)
    much = replace(least, allocated_bytes=1 << 37, terms={"activations": 1 << 37})
    assert traced_terms(much, asked)[Term.ACTIVATIONS] == 1 << 37
