"""The search for the largest value that fits, against trying every value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import make_job
from oomguard.catalogue.lookup import find_model
from oomguard.estimate.memory import Fits
from oomguard.job.memory_settings import Family
from oomguard.predict.largest import Largest, largest
from oomguard.predict.prediction_request import PredictionRequest
from oomguard.predict.predictor import by_arithmetic
from oomguard.units import GIB
from shapes import FACTORY, LORA, replace


def stepped(certain: int, possible: int):
    """Fits up to one value, and may up to another."""

    def fits(value: int) -> Fits:
        if value <= certain:
            return Fits.YES
        return Fits.UNSURE if value <= possible else Fits.NO

    return fits


@given(
    certain=st.integers(0, 300),
    more=st.integers(0, 300),
    requested=st.integers(1, 400),
    most=st.integers(1, 400),
)
def test_it_finds_what_trying_every_value_finds(certain, more, requested, most):
    fits = stepped(certain, certain + more)
    found = largest(fits, requested=requested, most=most)
    tried = [(value, fits(value)) for value in range(1, most + 1)]
    assert found == Largest(
        certain=max((value for value, one in tried if one is Fits.YES), default=None),
        possible=max((value for value, one in tried if one is not Fits.NO), default=None),
    )


def test_it_asks_few_times_even_of_a_million():
    asked = []

    def fits(value: int) -> Fits:
        asked.append(value)
        return stepped(123_456, 234_567)(value)

    found = largest(fits, requested=2048, most=1 << 20)
    assert found == Largest(certain=123_456, possible=234_567)
    assert len(asked) == len(set(asked)) < 80


def test_a_requested_value_that_a_trace_is_sure_of_counts_where_scaled_ones_below_are_not():
    def fits(value: int) -> Fits:
        if value == 8:
            return Fits.YES
        return Fits.UNSURE if value <= 20 else Fits.NO

    assert largest(fits, requested=8, most=100) == Largest(certain=8, possible=20)


def test_where_nothing_is_certain_there_is_only_what_may_fit():
    found = largest(stepped(0, 5), requested=8, most=100)
    assert found == Largest(certain=None, possible=5)
    assert largest(stepped(0, 0), requested=8, most=100) == Largest(certain=None, possible=None)


MODELS = [
    "meta-llama/Meta-Llama-3-8B",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "mistralai/Mixtral-8x7B-v0.1",
]


@pytest.mark.parametrize("name", MODELS)
@given(
    field=st.sampled_from(["micro_batch", "sequence_length", "lora_rank", "image_pixels"]),
    low=st.integers(1, 4000),
    more=st.integers(1, 4000),
    checkpointing=st.booleans(),
)
def test_a_larger_size_never_needs_less(name, field, low, more, checkpointing):
    """What the search rests on.

    The low bound may fall by a little where another moment of the step becomes the peak, of which
    less is counted number by number.
    """
    model = find_model(name, Family.HF, cwd=Path("/"), environment={"HF_HUB_OFFLINE": "1"})
    plan = replace(LORA, checkpointing=checkpointing, image_pixels=200_000)
    question = PredictionRequest(
        job=make_job(plan), recipe=FACTORY, model=model, plans=(), capacity_bytes=24 * GIB
    )
    scale = 100 if field == "image_pixels" else 1
    small, large = (
        by_arithmetic(question, replace(plan, **{field: value * scale}))
        for value in (low, low + more)
    )
    for bound in ("allocated_bytes", "expected_bytes", "high_bytes"):
        assert getattr(small, bound) <= getattr(large, bound)
    assert small.low_bytes <= 1.05 * large.low_bytes
