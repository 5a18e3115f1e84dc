"""Divide the rows of a batch into parts that fit, and learn how many tokens fit at once. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Optimizer steps with a divided batch before a larger part is tried; doubled when that fails.
FIRST_WAIT, LONGEST_WAIT = 16, 4096


def divide(lengths: Sequence[int], limit: int, *, padded: bool = True) -> list[list[int]]:
    """Return the numbers of the rows of each part: rows x longest row is at most `limit` tokens.

    Of rows that are not `padded` their sum is at most `limit`.
    The parts are as few as possible with the longest rows together, and then as even as that
    many allow. A row longer than `limit` is a part of its own. The part of the longest row is
    the first, so that one that does not fit fails early.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    fewest = len(_filled(lengths, order, limit, padded))
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        if len(_filled(lengths, order, middle, padded)) > fewest:
            low = middle + 1
        else:
            high = middle
    return [sorted(part) for part in _filled(lengths, order, high, padded)]


def tokens_of(lengths: Sequence[int], part: Sequence[int], *, padded: bool) -> int:
    """Return the tokens that a part takes, with the padding of its shorter rows."""
    own = [lengths[row] for row in part]
    return len(own) * max(own) if padded else sum(own)


def _filled(
    lengths: Sequence[int], order: Sequence[int], limit: int, padded: bool
) -> list[list[int]]:
    """Return the rows in parts, filled one after the other; `order` is from the longest down."""
    parts: list[list[int]] = []
    held = 0
    for row in order:
        larger = (len(parts[-1]) + 1) * lengths[parts[-1][0]] if parts and padded else 0
        larger = larger or held + lengths[row]
        if parts and larger <= limit:
            parts[-1].append(row)
            held = larger
        else:
            parts.append([row])
            held = lengths[row]
    return parts


class Budget:
    """How many tokens (rows x padded width) fit at once, as far as a process has seen.

    `limit` is None until something has run out of memory. It rises again by half after `_wait`
    divided steps, and falls back to what has passed if that was too much; each such failure
    doubles the wait, so that one that lasts costs a few steps of a whole run. With `most` it is
    known from the start, and never more than that.
    """

    def __init__(self, most: int | None = None) -> None:
        self.limit = self._most = most
        self._passed = 0
        self._known = 0
        self._wait, self._since = FIRST_WAIT, 0

    def passed(self, tokens: int) -> None:
        """Note that this many tokens went through a forward and a backward pass."""
        self._passed = max(self._passed, tokens)
        if self.limit is not None and tokens > self._known:
            self._known, self._wait = tokens, FIRST_WAIT

    def failed(self, tokens: int) -> None:
        """Note that this many tokens ran out of memory, and set a lower limit."""
        if self.limit is not None and self._known and tokens > self._known:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        if tokens <= self._passed:  # what fitted before no longer does
            self._passed = 0
        self._known, self._since = self._passed, 0
        close = self._passed if 4 * self._passed >= tokens else 0
        self.limit = max(1, close or tokens // 2)

    def finished_step(self) -> None:
        """Note the end of an optimizer step in which a batch was divided; perhaps allow more."""
        self._since += 1
        if self.limit is not None and self._since >= self._wait:
            larger = self.limit + max(1, self.limit // 2)
            self.limit, self._since = min(larger, self._most or larger), 0
