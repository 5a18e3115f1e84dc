"""Embeddings, head and norms that full tuning keeps in fp32 beside matrices in 16 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from frameworks.tiny_models import LLAMA, QWEN
from oomguard.estimate.analytic import SPREAD, analytic, static
from oomguard.estimate.architecture import from_config
from oomguard.estimate.memory import Term, allocated, estimate
from oomguard.estimate.term_descriptions import explain_terms
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan, Precision, Quantization, Sharding, Tuning
from shapes import problem

NAMES = ("norm", "embed_tokens", "lm_head")
PLAN = Plan(
    micro_batch=4,
    accumulation=1,
    sequence_length=256,
    precision=Precision.BF16_TRUE,
    quantization=Quantization.NONE,
    tuning=Tuning.FULL,
    checkpointing=False,
    optimizer="adamw_torch",
)
RECIPE = MemorySettings(trained_fp32=False, autocasts=True, foreach=False, raised=NAMES)
TIED = QWEN | {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("config", "changes", "held_bytes", "real_bytes"),
    [
        (LLAMA, {}, 26_227_776, 274_582_848),
        (LLAMA, {"checkpointing": True}, 26_227_776, 192_580_544),
        (LLAMA, {"accumulation": 2}, 26_227_776, 300_835_136),
        (LLAMA, {"optimizer": "sgd"}, 26_227_776, 222_151_764),
        (TIED, {}, 17_845_312, 249_435_524),
    ],
)
def test_a_real_step_takes_what_is_computed(config, changes, held_bytes, real_bytes):
    # Real steps of the Trainer on the CPU: frameworks/raised_truth.py.
    given = problem(PLAN, RECIPE, from_config(config), **changes)
    terms = analytic(given)
    assert terms[Term.WEIGHTS] == pytest.approx(held_bytes, rel=0.001)
    found = allocated(terms) - terms[Term.WORKSPACES]
    assert found == pytest.approx(real_bytes, rel=0.05)
    plain = analytic(replace(given, recipe=replace(RECIPE, raised=())))
    assert allocated(plain) - plain[Term.WORKSPACES] < 0.9 * real_bytes


def test_states_are_as_wide_as_what_they_update():
    given = problem(PLAN, RECIPE, from_config(LLAMA))
    matrices, beside = (
        6 * (3 * 256 * 768 + 2 * 256 * 256 + 2 * 256 * 128),
        2 * 8192 * 256 + 13 * 256,
    )
    assert (given.counts.linear, given.counts.raised) == (matrices, beside)
    assert static(given)[Term.OPTIMIZER] == 2 * (2 * matrices + 4 * beside)
    eight = [
        static(problem(PLAN, recipe, from_config(LLAMA), optimizer="adamw_bnb_8bit"))
        for recipe in (RECIPE, replace(RECIPE, raised=()))
    ]
    assert eight[0][Term.OPTIMIZER] == eight[1][Term.OPTIMIZER]  # states have a size of their own


def test_each_product_says_what_is_wider():
    given = problem(PLAN, RECIPE, from_config(LLAMA), accumulation=2)
    found = estimate(analytic(given), method="analytic", spread=SPREAD)
    shown = explain_terms(given, found)
    for term in (Term.WEIGHTS, Term.GRADIENTS, Term.OPTIMIZER):
        assert "(embeddings, head and norms in fp32) = " in shown[term.value]
        assert "by count" not in shown[term.value]


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Precision.FP32},
        {"tuning": Tuning.LORA},
        {"sharding": Sharding.ZERO2},
        {"sharding": Sharding.FSDP},
    ],
)
def test_nothing_is_raised_in_fp32_for_adapters_or_where_ranks_share(changes):
    given = problem(PLAN, RECIPE, from_config(LLAMA), ranks=2, **changes)
    assert given.counts.raised == 0
    assert given.step.formats == replace(given, recipe=replace(RECIPE, raised=())).step.formats
