"""The answer for a GPU, from made-up forecasts: an unsure one is never a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import Plan
from oomguard.job.unmodelled import Direction, Unmodelled
from oomguard.ladder.strategy_contract import SAME_MATH, Step
from oomguard.predict.card_answers import Answer, answer_for, smallest
from oomguard.predict.forecast import Capacity, Forecast, PlannedPeak, StrategyForecast
from oomguard.units import GIB

PLAN = Plan(micro_batch=4, accumulation=1)
CAPACITY = Capacity(device_bytes=24 * GIB)
STEP = Step(strategy="halve_micro_batch", summary="", fidelity=SAME_MATH, changes=())


def peak(low: int, expected: int, high: int) -> MemoryEstimate:
    return MemoryEstimate(
        allocated_bytes=expected * GIB,
        reserved_bytes=expected * GIB,
        low_bytes=low * GIB,
        expected_bytes=expected * GIB,
        high_bytes=high * GIB,
        terms={},
        method="analytic",
    )


PEAKS = {
    Fits.YES: peak(10, 12, 14), Fits.UNSURE: peak(20, 25, 30), Fits.NO: peak(30, 40, 50),
}  # fmt: skip


def found(asked: Fits, *rungs: Fits) -> Forecast:
    return Forecast(
        asked=PlannedPeak(plan=PLAN, estimate=PEAKS[asked], fits=asked),
        rungs=tuple(
            StrategyForecast(
                strategy="halve_micro_batch",
                plan=replace(PLAN, micro_batch=2),
                step=STEP,
                estimate=PEAKS[fits],
                fits=fits,
            )
            for fits in rungs
        ),
    )


@pytest.mark.parametrize(
    ("forecast", "answer"),
    [
        (found(Fits.YES), Answer.FITS),
        (found(Fits.YES, Fits.NO), Answer.FITS),
        (found(Fits.NO, Fits.YES), Answer.WITH_CHANGES),
        (found(Fits.UNSURE, Fits.YES), Answer.WITH_CHANGES),
        (found(Fits.UNSURE), Answer.UNSURE),
        (found(Fits.UNSURE, Fits.NO), Answer.UNSURE),
        (found(Fits.NO, Fits.UNSURE), Answer.UNSURE),
        (found(Fits.NO, Fits.NO), Answer.NO),
        (found(Fits.NO), Answer.NO),
    ],
)
def test_an_unsure_verdict_is_never_a_fit(forecast, answer):
    one = answer_for("A10", 1, forecast, CAPACITY, ())
    assert one.answer is answer
    assert one.is_fit is (answer in (Answer.FITS, Answer.WITH_CHANGES))
    assert (one.because is not None) is (answer is Answer.UNSURE)
    assert (one.fit is not None) is (answer is Answer.WITH_CHANGES)
    assert not one.is_fit or one.estimate.high_bytes <= one.capacity_bytes


def test_why_it_is_unsure_is_what_is_left_out_else_the_interval():
    one = answer_for("A10", 1, found(Fits.UNSURE), CAPACITY, ())
    assert one.because == "it needs between 20.00 GiB and 30.00 GiB"
    missing = Unmodelled(key="use_badam", effect="", direction=Direction.MORE)
    one = answer_for("A10", 1, found(Fits.UNSURE), CAPACITY, (missing,))
    assert one.because == "the estimate leaves out use_badam"


def test_a_config_that_is_refused_does_not_fit_as_requested():
    one = answer_for("A10", 1, found(Fits.YES), CAPACITY, (), refused="no such optimizer")
    assert (one.answer, one.because) == (Answer.UNSURE, "no such optimizer")
    assert one.asked.fits is Fits.UNSURE


def test_the_smallest_has_the_least_memory_in_all_then_the_fewest_gpus():
    answers = [
        answer_for(f"{gpus} x {size}", gpus, found(Fits.YES), Capacity(device_bytes=size * GIB), ())
        for gpus, size in ((1, 80), (2, 24), (1, 48), (4, 16))
    ]
    least = smallest(answers)
    assert least is not None
    assert least.card == "1 x 48"
    assert smallest([]) is None
