"""Correct a prediction by what was measured before on the same device with the same versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oomguard.estimate.memory import COUNTED, OUTSIDE, Term

#: A ratio outside of this says that another thing was measured, not that the estimate is off.
LEAST, MOST = 0.5, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Measured over predicted: `worked` for what is not counted exactly, `slack` beside it.

    `runs` says how many measurements they rest on.
    """

    worked: float = 1.0
    slack: float = 1.0
    runs: int = 0


#: Where nothing was measured yet.
UNCORRECTED = Ratios()


def corrected(terms: Mapping[Term, int], ratios: Ratios) -> dict[Term, int]:
    """Scale what is not counted; weights, gradients and optimizer state are known."""
    exact = COUNTED | OUTSIDE
    return {
        term: size if term in exact else int(size * _factor(term, ratios))
        for term, size in terms.items()
    }


def ratio(measured: float, predicted: float) -> float | None:
    """Divide, where that says anything."""
    if predicted <= 0 or measured <= 0:
        return None
    found = measured / predicted
    return found if LEAST <= found <= MOST else None


def _factor(term: Term, ratios: Ratios) -> float:
    return ratios.slack if term is Term.ALLOCATOR_SLACK else ratios.worked
