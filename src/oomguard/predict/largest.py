"""The largest value of a setting that fits: a search over predicted peaks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oomguard.estimate.memory import Fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest value that is certain to fit, and the largest that may; None where none does."""

    certain: int | None
    possible: int | None


def largest(fits: Callable[[int], Fits], *, requested: int, most: int) -> Largest:
    """Search from 1 to `most`, where a larger value never needs less memory.

    The requested value is tried first: what holds for it bounds the search, also where its own
    prediction is closer than those of other values (a trace beside scaled ones).
    """
    verdicts: dict[int, Fits] = {}

    def verdict(value: int) -> Fits:
        if value not in verdicts:
            verdicts[value] = fits(value)
        return verdicts[value]

    certain = _last(lambda value: verdict(value) is Fits.YES, requested, most)
    possible = _last(lambda value: verdict(value) is not Fits.NO, requested, most)
    return Largest(certain=certain, possible=max(certain or 0, possible or 0) or None)


def _last(holds: Callable[[int], bool], start: int, most: int) -> int | None:
    """Return the last value for which a condition holds, which holds up to there and not beyond."""
    start = min(start, most)
    held, failed = (start, most + 1) if holds(start) else (0, start)
    width = 1
    while held and failed == most + 1 and held + width <= most:  # double the step upwards
        if holds(held + width):
            held, width = held + width, 2 * width
        else:
            failed = held + width
    while failed - held > 1:
        middle = (held + failed) // 2
        held, failed = (middle, failed) if holds(middle) else (held, middle)
    return held or None
