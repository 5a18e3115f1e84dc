"""From the reports of the job's processes to trends of their memory, and to causes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from oomguard.evidence.verdict import Cause
from oomguard.process.messages import DeviceMemory, OomReport, ProcessMemory, Shapes, StepReport
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

    def take(self, report: StepReport) -> Growth | None:
        """Take in a report; give a growth that is news."""
        if report.memory is None:
            return None
        watch = self._watches.setdefault(report.pid, Watch())
        kept, peak, watch.limit_bytes = self._levels(report.memory)
        if kept is None:
            return None
        watch.step(
            report.step,
            kept_bytes=kept,
            peak_bytes=max(kept, peak or 0),
            batch=_elements(report.shapes),
        )
        growth = watch.growth()
        return growth if growth is not None and self._is_news(report.pid, growth) else None

    def cause(self, report: OomReport) -> Cause:
        """Return why memory ran out, as far as one report and those before it show."""
        watch = self._watches.get(report.pid, Watch())
        if watch.is_outlier(_elements(report.shapes)):
            return Cause.OUTLIER
        if watch.growth() is not None:
            return Cause.GROWTH
        cards = report.memory.cuda if report.memory else ()
        return _cause_on(cards, report.requested_bytes)

    def _levels(self, memory: ProcessMemory) -> tuple[int | None, int | None, int | None]:
        """Return what is kept between steps, the most within one, and the limit."""
        if not memory.cuda:
            data = memory.data_bytes if self._data_limit_bytes else None
            kept = data if data is not None else memory.rss_bytes
            return kept, memory.peak_data_bytes if data else kept, self._data_limit_bytes
        card = max(memory.cuda, key=lambda one: one.allocated_bytes or 0)
        room = (card.free_bytes or 0) + (card.reserved_bytes or 0)
        limits = [size for size in (room, self._gpu_limit_bytes) if size]
        return card.allocated_bytes, card.peak_allocated_bytes, min(limits, default=None)

    def _is_news(self, pid: int, growth: Growth) -> bool:
        before, now = self._said.get(pid), growth.forecast_step
        first = pid not in self._said
        moved = before and now and abs(now - before) > NEWS_SHARE * before
        if first or moved:
            self._said[pid] = now
        return bool(first or moved)


def _elements(shapes: Shapes | None) -> int:
    """Count the elements of the largest tensor of the batch."""
    return max((math.prod(shape) for shape in (shapes or {}).values()), default=0)


def _cause_on(cards: Iterable[DeviceMemory], requested_bytes: int | None) -> Cause:
    for card in cards:
        if card.total_bytes is None or card.free_bytes is None:
            continue
        reserved, allocated = card.reserved_bytes or 0, card.allocated_bytes or 0
        others = card.total_bytes - card.free_bytes - reserved
        if others > OWN_EXTRA_BYTES and others > reserved:
            return Cause.OTHER_PROCESS
        pieces = reserved - allocated + card.free_bytes
        if requested_bytes and pieces > PIECES_RATIO * requested_bytes:
            return Cause.FRAGMENTATION
    return Cause.UNKNOWN
