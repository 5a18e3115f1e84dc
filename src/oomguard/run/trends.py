"""From the reports of the job's processes to trends of their memory, and to causes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oomguard.evidence.verdict import Cause
from oomguard.run.leak import Growth, Watch
from oomguard.units import GIB

#: A forecast that moves by less is no news.
NEWS_SHARE = 0.05
#: What a CUDA context and the driver take beside the allocator's own; more is somebody else's.
OWN_EXTRA_BYTES = 2 * GIB
#: A failed request this much smaller than what is free in pieces failed for want of one piece.
PIECES_RATIO = 1.5


class Trends:
    """Watches each process; says a growth once, and again when its end moves."""

    def __init__(self, *, data_limit_bytes: int | None, gpu_limit_bytes: int | None) -> None:
        self._data_limit_bytes, self._gpu_limit_bytes = data_limit_bytes, gpu_limit_bytes
        self._watches: dict[int, Watch] = {}
        self._said: dict[int, int | None] = {}

    def take(self, message: Mapping[str, Any]) -> Growth | None:
        """Take in a report; give a growth that is news."""
        memory = message.get("memory") or {}
        if message.get("type") != "step" or not memory:
            return None
        pid = int(message.get("pid") or 0)
        watch = self._watches.setdefault(pid, Watch())
        kept, peak, watch.limit_bytes = self._levels(memory)
        if kept is None:
            return None
        watch.step(
            int(message.get("step") or 0),
            kept_bytes=kept,
            peak_bytes=max(kept, peak or 0),
            batch=_elements(message),
        )
        growth = watch.growth()
        return growth if growth is not None and self._is_news(pid, growth) else None

    def cause(self, message: Mapping[str, Any]) -> Cause:
        """Return why memory ran out, as far as one report and those before it show."""
        if message.get("type") != "oom":
            return Cause.UNKNOWN
        watch = self._watches.get(int(message.get("pid") or 0), Watch())
        if watch.is_outlier(_elements(message)):
            return Cause.OUTLIER
        if watch.growth() is not None:
            return Cause.GROWTH
        cards = (message.get("memory") or {}).get("cuda") or []
        return _cause_on(cards, message.get("requested_bytes"))

    def _levels(self, memory: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
        """Return what is kept between steps, the most within one, and the limit."""
        cards = memory.get("cuda") or []
        if not cards:
            data = memory.get("data_bytes") if self._data_limit_bytes else None
            kept = data if data is not None else memory.get("rss_bytes")
            return kept, memory.get("peak_data_bytes") if data else kept, self._data_limit_bytes
        card = max(cards, key=lambda one: one.get("allocated_bytes") or 0)
        room = (card.get("free_bytes") or 0) + (card.get("reserved_bytes") or 0)
        limits = [size for size in (room, self._gpu_limit_bytes) if size]
        return (
            card.get("allocated_bytes"),
            card.get("peak_allocated_bytes"),
            min(limits, default=None),
        )

    def _is_news(self, pid: int, growth: Growth) -> bool:
        before, now = self._said.get(pid), growth.forecast_step
        first = pid not in self._said
        moved = before and now and abs(now - before) > NEWS_SHARE * before
        if first or moved:
            self._said[pid] = now
        return bool(first or moved)


def _elements(message: Mapping[str, Any]) -> int:
    """Count the elements of the largest tensor of the batch."""
    shapes = (message.get("shapes") or {}).values()
    return max((math.prod(shape) for shape in shapes), default=0)


def _cause_on(cards: list[Mapping[str, Any]], requested_bytes: int | None) -> Cause:
    for card in cards:
        total, free = card.get("total_bytes"), card.get("free_bytes")
        reserved, allocated = card.get("reserved_bytes") or 0, card.get("allocated_bytes") or 0
        if total is None or free is None:
            continue
        others = total - free - reserved
        if others > OWN_EXTRA_BYTES and others > reserved:
            return Cause.OTHER_PROCESS
        if requested_bytes and reserved - allocated + free > PIECES_RATIO * requested_bytes:
            return Cause.FRAGMENTATION
    return Cause.UNKNOWN
