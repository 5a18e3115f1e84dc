"""Join what a model returned for the parts of a batch."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NotJoinedError(Exception):
    """Outputs that do not have one entry for each sample, and why."""


def put(whole: Any, part: Any, *, start: int, count: int, total: int, axis: int = 0) -> Any:
    """Return the outputs of a batch with those of `count` of its `total` samples from `start` on.

    `whole` is None before the first part: then there is room for all of them, so that no more than
    one part is held besides. A part of pairs has its chosen rows before its rejected ones, and so
    has the whole.

    Raises:
        NotJoinedError: if they are not tensors with an entry for each sample or each of its rows.
    """
    if part is None:
        return None
    at = {"start": start, "count": count, "total": total, "axis": axis}
    if isinstance(part, dict):
        old = whole or {}
        return {name: put(old.get(name), one, **at) for name, one in part.items()}
    if isinstance(part, (list, tuple)):
        olds = whole or [None] * len(part)
        return type(part)(put(old, one, **at) for old, one in zip(olds, part))  # noqa: B905 - 3.8
    if not hasattr(part, "shape"):
        raise NotJoinedError(f"an output is a {type(part).__name__}")
    if not part.shape and count == 1:  # it may have lost its dimension
        part = part.reshape(1)
    shape = list(part.shape)
    each, rest = divmod(int(shape[axis]), count) if len(shape) > axis else (0, 1)
    if rest or not each:
        raise NotJoinedError("an output does not have one entry for each sample")
    shape[axis] = each * total
    whole = part.new_empty(shape) if whole is None else whole
    if list(whole.shape) != shape:
        raise NotJoinedError("the outputs of parts have different shapes")
    for number in range(each):
        own = part.narrow(axis, number * count, count)
        whole.narrow(axis, number * total + start, count).copy_(own)
    return whole
