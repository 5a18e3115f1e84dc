"""Find out how the losses of parts add up to the loss of the whole batch, by measuring it.

Whoever computes the loss (the model, the trainer, the user) decides what it is divided by. So the
loss of two rows together is computed once, and that of each alone, without gradients and dropout:
which weights make the two add up to the one?
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .split_batch import Rows
    from .split_packed import PackedRow

    Samples = Rows | PackedRow

#: How the loss of a batch follows from that of its rows: it is their sum (each is divided by the
#: items of the whole optimizer step), or their mean, weighted by labels or by rows.
SUM, SHIFTED_LABELS, LABELS, ROWS = "sum", "shifted labels", "labels", "rows"
#: Largest relative difference between the sum of the parts and the whole, in fp32 and below it.
EXACT, CLOSE_IN_HALF = 2e-5, 3e-2


class NotAdditiveError(Exception):
    """The loss of a batch does not follow from that of its parts, as far as can be shown."""


def weigh(rows: Samples, parts: Sequence[Sequence[int]], way: str) -> list[float]:
    """Return the factor for the loss of each part; 0 where a part adds nothing."""
    if way == SUM:
        return [1.0] * len(parts)
    counts = _counts(rows, way)
    total = sum(counts) or 1
    return [sum(counts[row] for row in part) / total for part in parts]


def is_uniform(rows: Samples) -> bool:
    """Return whether every mean over these rows is the same: each has as many labels."""
    return len(set(_counts(rows, SHIFTED_LABELS))) == len(set(_counts(rows, LABELS))) == 1


def measure(
    rows: Samples, loss_of: Callable[[Any], float], *, tolerance: float, expected: str | None
) -> str:
    """Return the way in which the losses of two rows add up; `expected` where it is one of many.

    Raises:
        NotAdditiveError: if there is none, or several that would weigh the parts differently.
    """
    pair = _pair(rows)
    if pair is None:
        if expected is None:
            raise NotAdditiveError("fewer than two rows have a loss")
        return expected
    lengths = rows.lengths()
    losses = [loss_of(rows.take([row], lengths[row])) for row in pair]
    both = loss_of(rows.take(sorted(pair), max(lengths[row] for row in pair)))
    fitting = []
    for way in (SUM, SHIFTED_LABELS, LABELS, ROWS):
        counts = [1, 1] if way == SUM else [_counts(rows, way)[row] for row in pair]
        total = 1 if way == SUM else sum(counts) or 1
        joined = sum(count * loss for count, loss in zip(counts, losses)) / total  # noqa: B905 - 3.8
        if abs(joined - both) <= tolerance * abs(both):
            fitting.append(way)
    if expected is not None and expected in fitting:
        return expected
    alone = [[row] for row in range(rows.count)]
    if len({tuple(weigh(rows, alone, way)) for way in fitting}) != 1:
        raise NotAdditiveError("the loss of a batch does not add up from that of its rows")
    if abs(losses[0] - losses[1]) <= tolerance * abs(both):
        raise NotAdditiveError("the rows' losses are too close to show how they add up")
    return fitting[0]


def _counts(rows: Samples, way: str) -> list[int]:
    if way == ROWS:
        return [1] * rows.count
    return rows.labelled(shifted=way == SHIFTED_LABELS)


def _pair(rows: Samples) -> tuple[int, int] | None:
    """Return the two shortest rows that have a loss, with different numbers of labels if any."""
    counts, lengths = _counts(rows, SHIFTED_LABELS), rows.lengths()
    order = sorted((row for row in range(rows.count) if counts[row]), key=lambda row: lengths[row])
    if len(order) <= 1:
        return None
    first = order[0]
    other = next((row for row in order if counts[row] != counts[first]), order[1])
    return first, other
