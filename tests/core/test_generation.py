"""What the arithmetic counts while the policy generates completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from oomguard.estimate.analytic import EstimateInput, analytic, generation_terms
from oomguard.estimate.architecture import Architecture, Linear
from oomguard.estimate.formats import Formats
from oomguard.estimate.generation import GenerationPass
from oomguard.estimate.memory import Term
from oomguard.job.memory_settings import Format, Generation, Lora, MemorySettings
from oomguard.job.plan import Plan, Precision, Sharding, Tuning

MODEL = Architecture(
    model_type="llama", hidden=1024, layers=4, heads=8, kv_heads=2, head_size=128,
    intermediate=4096, vocab=10_000,
    linears=(Linear(role="query", inputs=1024, outputs=1024, names=("q_proj",)),),
)  # fmt: skip
PASS = GenerationPass(
    model=MODEL,
    formats=Formats(base_bytes=2, trained_bytes=2, computed_bytes=2, autocast=False),
    rows=16, prompt=100, completion=400, inner=4096, autocast=False, sampled_bytes=8,
)  # fmt: skip
#: Keys and values of one token in one layer, all heads.
TOKEN = 2 * 2 * 128
PLAN = Plan(
    micro_batch=4, accumulation=4, sequence_length=500, completion_length=400,
    generation_batch=16, precision=Precision.BF16_TRUE, tuning=Tuning.FULL,
)  # fmt: skip
SETTINGS = MemorySettings(base=Format.BF16, generation=Generation())


def test_the_cache_grows_to_all_tokens_and_a_layer_copies_its_own() -> None:
    cache = 4 * 16 * 500 * TOKEN * 2
    repeated = 2 * 16 * 500 * 8 * 128 * 2
    assert PASS.decoding == cache + cache // 4 // 2 + repeated


def test_the_prompts_go_through_one_layer_after_the_other() -> None:
    layer = 3 * 4096 * 2 + 4 * 1024 * 2
    mask = 16 * 100 * 100
    assert PASS.prefill == 4 * 16 * 100 * TOKEN * 2 + mask + 16 * 100 * layer


def test_a_wide_vocabulary_is_sampled_from() -> None:
    wide = replace(PASS, model=replace(MODEL, vocab=1_000_000))
    assert wide.decoding == 4 * 16 * 500 * TOKEN * 2 + 16 * 1_000_000 * (2 + 8)


def test_autocast_caches_keys_as_wide_as_the_weights_and_converts_logits() -> None:
    mixed = Formats(base_bytes=4, trained_bytes=4, computed_bytes=2, autocast=True)
    cast = replace(PASS, formats=mixed, autocast=True, prompt=1, completion=1)
    assert cast.decoding == 4 * 16 * 2 * TOKEN * 3 + 16 * 10_000 * (4 + 8)


def test_gradients_stand_beside_what_is_generated_within_a_step() -> None:
    problem = EstimateInput(model=MODEL, plan=PLAN, recipe=SETTINGS)
    early = replace(problem, plan=replace(PLAN, generation_batch=8))
    assert all(not moment.get(Term.GRADIENTS) for moment in generation_terms(problem))
    assert all(moment[Term.GRADIENTS] > 0 for moment in generation_terms(early))


@pytest.mark.parametrize(("gathers", "factor"), [(True, 0.75), (False, 0.0)])
def test_under_zero3_each_rank_may_hold_the_whole_model(gathers: bool, factor: float) -> None:
    recipe = replace(SETTINGS, generation=Generation(gathers=gathers))
    plan = replace(PLAN, sharding=Sharding.ZERO3)
    problem = EstimateInput(model=MODEL, plan=plan, recipe=recipe, ranks=4)
    for moment in generation_terms(problem):
        assert moment[Term.ZERO_BUCKETS] == pytest.approx(factor * 2 * MODEL.decoder, rel=0.01)


def test_an_adapter_generates_without_autocast() -> None:
    lora = replace(SETTINGS, base=Format.FP32, lora=Lora(rank=8, alpha=16))
    plan = replace(PLAN, precision=Precision.BF16_MIXED)
    found = {
        tuning: EstimateInput(
            model=MODEL, plan=replace(plan, tuning=tuning), recipe=lora
        ).step.generation
        for tuning in (Tuning.FULL, Tuning.LORA)
    }
    assert {tuning: one and one.autocast for tuning, one in found.items()} == {
        Tuning.FULL: True,
        Tuning.LORA: False,
    }


@pytest.mark.parametrize(
    ("change", "is_there"),
    [
        (lambda plan: plan, True),
        (lambda plan: replace(plan, micro_batch=16, accumulation=1), False),
        (lambda plan: replace(plan, completion_length=None, generation_batch=None), False),
    ],
)
def test_generating_is_the_peak_where_training_takes_less(
    change: Callable[[Plan], Plan], is_there: bool
) -> None:
    small = replace(PLAN, micro_batch=1, accumulation=64, generation_batch=64, optimizer="sgd")
    plan = change(replace(small, checkpointing=True))
    terms = analytic(EstimateInput(model=MODEL, plan=plan, recipe=SETTINGS))
    assert (terms.get(Term.GENERATION, 0) > 0) is is_there


@pytest.mark.parametrize(("sleeps", "is_there"), [(False, True), (True, False)])
def test_a_colocated_engine_holds_its_share_while_the_model_trains(
    sleeps: bool, is_there: bool
) -> None:
    plan = replace(PLAN, engine_share=0.3, engine_sleeps=sleeps, micro_batch=16, accumulation=1)
    recipe = replace(SETTINGS, generation=Generation(by_engine=True))
    share = 10**9
    found = analytic(EstimateInput(model=MODEL, plan=plan, recipe=recipe, engine_bytes=share))
    alone = analytic(EstimateInput(model=MODEL, plan=plan, recipe=recipe))
    assert found[Term.INFERENCE_ENGINE] == (share if is_there else 0)
    assert sum(found.values()) - sum(alone.values()) == (share if is_there else 0)


def test_an_engine_that_sleeps_is_the_peak_where_its_share_is_more_than_a_step() -> None:
    plan = replace(PLAN, engine_share=0.9, engine_sleeps=True)
    recipe = replace(SETTINGS, generation=Generation(by_engine=True))
    found = analytic(EstimateInput(model=MODEL, plan=plan, recipe=recipe, engine_bytes=10**12))
    assert found[Term.INFERENCE_ENGINE] == 10**12
    assert not found.get(Term.GENERATION)
