"""Correct a prediction by what was measured before on the same device with the same versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from oomguard.estimate.linear import solved
from oomguard.estimate.memory import COUNTED, NOT_ALLOCATED, Term, Terms, allocated

#: A ratio outside of this says that another thing was measured, not that the estimate is off.
LEAST, MOST = 0.5, 2.0
#: How far a term's ratio is expected to be from 1 before anything was measured (one standard
#: deviation): what is counted number by number, and what depends on what the kernels do.
COUNTED_DOUBT, WORKED_DOUBT = 0.01, 0.25
#: How far a peak may be from a prediction whose terms are all right on the average.
MEASURED_DOUBT = 0.01
#: What stands on the device when the first forward pass begins, where nothing else does.
LOADED = (Term.WEIGHTS, Term.ADAPTER)
_ALSO_LOADED = (
    Term.TRAINED_EMBEDDINGS,
    Term.MEDIA_TOWERS,
    Term.ZERO_BUCKETS,
    Term.COMMUNICATION_BUFFERS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Measured over predicted, by term; a term that is not named stays as it is.

    `runs` says how many measurements they rest on.
    """

    factors: Mapping[Term, float] = field(default_factory=dict)
    runs: int = 0


#: Where nothing was measured yet.
UNCORRECTED = Ratios()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one attempt took at its peak, in bytes, beside the terms predicted for its plan.

    `terms` are the predicted ones before any correction. `loaded_bytes` stood on the device when
    the first forward pass began, `context_bytes` outside of PyTorch's allocator; None: not known.
    """

    terms: Terms
    allocated_bytes: int
    reserved_bytes: int
    loaded_bytes: int | None = None
    context_bytes: int | None = None


def corrected(terms: Terms, ratios: Ratios) -> dict[Term, int]:
    """Scale each term by its ratio."""
    return {term: int(size * ratios.factors.get(term, 1.0)) for term, size in terms.items()}


def learnt(measurements: Sequence[Measured]) -> Ratios:
    """Return by what factor each term is off.

    Weights, allocator slack and CUDA context are measured by themselves: the median counts. The
    others only show in the sum that is the peak. Their ratios are those that explain all peaks
    best and stay close to 1 (least squares, weighted by the doubts above): one measurement moves
    the large and doubtful terms alike, several of different plans tell the terms apart.
    """
    usable = [one for one in measurements if _is_usable(one)]
    factors = {
        **dict.fromkeys(LOADED, _middle(_loaded, usable)),
        Term.ALLOCATOR_SLACK: _middle(_slack, usable),
        Term.CUDA_CONTEXT: _middle(_context, usable),
    }
    known = {term: factor for term, factor in factors.items() if factor is not None}
    return Ratios(factors={**known, **_explained(usable, known)}, runs=len(usable))


def ratio(measured: float, predicted: float) -> float | None:
    """Divide, where that says anything."""
    if predicted <= 0 or measured <= 0:
        return None
    found = measured / predicted
    return found if LEAST <= found <= MOST else None


def _is_usable(one: Measured) -> bool:
    counted = sum(one.terms.get(term, 0) for term in COUNTED)
    return ratio(one.allocated_bytes - counted, allocated(one.terms) - counted) is not None


def _middle(
    find: Callable[[Measured], float | None], measurements: Iterable[Measured]
) -> float | None:
    found = [value for value in map(find, measurements) if value is not None]
    return median(found) if found else None


def _loaded(one: Measured) -> float | None:
    if one.loaded_bytes is None or any(one.terms.get(term) for term in _ALSO_LOADED):
        return None
    return ratio(one.loaded_bytes, sum(one.terms.get(term, 0) for term in LOADED))


def _slack(one: Measured) -> float | None:
    slack = one.reserved_bytes - one.allocated_bytes
    return ratio(slack, one.terms.get(Term.ALLOCATOR_SLACK, 0))


def _context(one: Measured) -> float | None:
    return ratio(one.context_bytes or 0, one.terms.get(Term.CUDA_CONTEXT, 0))


def _explained(measurements: Sequence[Measured], known: Mapping[Term, float]) -> dict[Term, float]:
    """Find the ratios of the terms that are not `known`: the ridge regression's minimum.

    Of sum over measurements ((sum of ratio x predicted - measured) / doubt)^2, plus sum over
    terms ((ratio - 1) / doubt)^2, with each ratio written as 1 + doubt x unknown.
    """
    free = [
        term
        for term in Term
        if term not in known and term not in NOT_ALLOCATED
        and any(one.terms.get(term) for one in measurements)
    ]  # fmt: skip
    doubts = [COUNTED_DOUBT if term in COUNTED else WORKED_DOUBT for term in free]
    rows, misses = [], []
    for one in measurements:
        scale = MEASURED_DOUBT * one.allocated_bytes
        sizes = (one.terms.get(term, 0) for term in free)
        rows.append([size * doubt / scale for size, doubt in zip(sizes, doubts, strict=True)])
        fixed = corrected(one.terms, Ratios(factors=known))
        misses.append((one.allocated_bytes - allocated(fixed)) / scale)
    shifts = solved(*_normal(rows, misses, len(free)))
    moves = [doubt * shift for doubt, shift in zip(doubts, shifts, strict=True)]
    part = _within_bounds(moves)
    return {term: 1 + part * move for term, move in zip(free, moves, strict=True)}


def _within_bounds(moves: Iterable[float]) -> float:
    """Return how much of the way to the minimum keeps all ratios within bounds.

    Each point on that way explains the peaks better than none of it does.
    """
    bounds = ((MOST - 1 if move > 0 else LEAST - 1, move) for move in moves if move)
    return min((1.0, *(bound / move for bound, move in bounds)))


def _normal(
    rows: Sequence[Sequence[float]], misses: Sequence[float], count: int
) -> tuple[list[list[float]], list[float]]:
    """Return the normal equations of the regression, with the identity as its ridge."""
    matrix = [
        [sum(row[i] * row[j] for row in rows) + (i == j) for j in range(count)]
        for i in range(count)
    ]
    return matrix, [
        sum(row[i] * miss for row, miss in zip(rows, misses, strict=True)) for i in range(count)
    ]
