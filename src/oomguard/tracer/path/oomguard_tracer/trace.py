"""What a dry run recorded: allocations and releases in order, pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

#: The caching allocator rounds every request up to this many bytes.
ROUND_BYTES = 512


class MemoryEvent(NamedTuple):
    """One allocation (`size_bytes` > 0) or release (< 0) of a storage.

    `layer` is the repeated layer that it belongs to, as (stack, index), or None.
    """

    storage: int
    size_bytes: int
    layer: tuple[str, int] | None


@dataclass(slots=True)
class Trace:
    """Events in order, and for each storage the term of the peak that it counts towards."""

    events: list[MemoryEvent] = field(default_factory=list)
    terms: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most bytes alive at once, and what they were."""

    size_bytes: int
    terms: dict[str, int]


def peak(trace: Trace) -> Peak:
    """Find the first moment with the most bytes alive, sizes rounded as the allocator rounds."""
    at = _peak_position(trace.events)
    alive: dict[int, int] = {}
    for event in trace.events[: at + 1]:
        if event.size_bytes > 0:
            alive[event.storage] = rounded(event.size_bytes)
        else:
            alive.pop(event.storage, None)
    terms: dict[str, int] = {}
    for storage, size_bytes in alive.items():
        name = trace.terms.get(storage, "activations")
        terms[name] = terms.get(name, 0) + size_bytes
    return Peak(size_bytes=sum(terms.values()), terms=terms)


def rounded(size_bytes: int) -> int:
    """Round a request up as the allocator does."""
    return -(-size_bytes // ROUND_BYTES) * ROUND_BYTES


def _peak_position(events: Iterable[MemoryEvent]) -> int:
    current = most = 0
    position = 0
    for index, event in enumerate(events):
        size_bytes = event.size_bytes
        current += rounded(size_bytes) if size_bytes > 0 else -rounded(-size_bytes)
        if current > most:
            most, position = current, index
    return position
