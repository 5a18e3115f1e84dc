"""The answers for several GPUs: it fits as requested, after changes, not, or that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.unmodelled import Memory, Unmodelled
from oomguard.predict.forecast import Capacity, Fit, Forecast, PlannedPeak, missing_from
from oomguard.units import show_bytes


class Answer(str, Enum):
    """How a job fits on a GPU."""

    FITS = "fits"  # as requested
    WITH_CHANGES = "with_changes"  # after strategies that are allowed
    UNSURE = "unsure"  # it may, as requested or after strategies
    NO = "no"  # neither as requested nor after any strategy that is allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class CardAnswer:
    """The answer for some GPUs of one kind.

    `fit` is the first plan that fits where changes are needed. `estimate` is the peak of one GPU
    under the plan that the answer is about: the requested one, the first that fits, or of those
    that may fit the smallest. `because` says why the answer is not known.
    """

    card: str
    gpus: int
    capacity_bytes: int
    answer: Answer
    asked: PlannedPeak
    estimate: MemoryEstimate
    fit: Fit | None = None
    because: str | None = None

    @property
    def is_fit(self) -> bool:
        """Return whether the job is certain to fit, with or without changes."""
        return self.answer in (Answer.FITS, Answer.WITH_CHANGES)


def answer_for(
    card: str,
    gpus: int,
    found: Forecast,
    capacity: Capacity,
    unmodelled: Sequence[Unmodelled],
    *,
    refused: str | None = None,
) -> CardAnswer:
    """Return the answer of a forecast; `refused` is the framework's message against the config."""
    asked, fit = found.asked, found.first_fit
    fits = Fits.UNSURE if refused and asked.fits is Fits.YES else asked.fits
    estimate, because = asked.estimate, None
    if fits is Fits.YES:
        answer = Answer.FITS
    elif fit is not None:
        answer, estimate = Answer.WITH_CHANGES, fit.estimate
    elif (closest := _closest(found, fits)) is not None:
        answer, estimate = Answer.UNSURE, closest
        because = refused or _why_unsure(closest, capacity, unmodelled)
    else:
        answer = Answer.NO
    return CardAnswer(
        card=card,
        gpus=gpus,
        capacity_bytes=capacity.device_bytes,
        answer=answer,
        asked=PlannedPeak(plan=asked.plan, estimate=asked.estimate, fits=fits),
        estimate=estimate,
        fit=fit if answer is Answer.WITH_CHANGES else None,
        because=because,
    )


def smallest(answers: Iterable[CardAnswer]) -> CardAnswer | None:
    """Return the answer with the least memory in all, of the same memory that with fewer GPUs."""
    return min(answers, key=lambda one: (one.gpus * one.capacity_bytes, one.gpus), default=None)


def cheapest_answer(
    answers: Iterable[CardAnswer], prices: Mapping[str, float]
) -> CardAnswer | None:
    """Return the answer with the lowest price in all, of the same price that with less memory."""
    priced = (one for one in answers if one.card in prices)
    return min(
        priced,
        key=lambda one: (one.gpus * prices[one.card], one.gpus * one.capacity_bytes),
        default=None,
    )


def _closest(found: Forecast, asked: Fits) -> MemoryEstimate | None:
    """Return the peak of the plan that may fit: the requested one if it may, else the smallest."""
    if asked is Fits.UNSURE:
        return found.asked.estimate
    unsure = [rung.estimate for rung in found.rungs if rung.fits is Fits.UNSURE and rung.estimate]
    return min(unsure, key=lambda estimate: estimate.expected_bytes, default=None)


def _why_unsure(
    estimate: MemoryEstimate, capacity: Capacity, unmodelled: Sequence[Unmodelled]
) -> str:
    missing = missing_from(estimate, unmodelled)
    keys = dict.fromkeys(one.key for one in missing if one.memory is Memory.GPU)
    if keys:
        return f"the estimate leaves out {', '.join(keys)}"
    if estimate.fits(capacity.device_bytes) is Fits.YES:
        return "it may take more host memory than there is"
    low, high = show_bytes(estimate.low_bytes), show_bytes(estimate.high_bytes)
    return f"it needs between {low} and {high}"
