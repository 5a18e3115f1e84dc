"""Detect memory leaks from the monitor's reports: slope, forecast, and the cause of an OOM."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from oomguard.evidence.verdict import Cause
from oomguard.process.messages import DeviceMemory, OomReport, ProcessMemory, Shapes, StepReport
from oomguard.units import GIB, MIB

#: Steps in which allocators warm up and optimizer states are created.
WARM_UP_STEPS = 3
#: Points needed for a trend, and points kept: longer runs are thinned out.
MIN_POINTS, MAX_POINTS = 8, 64
#: A smaller rise, in bytes and as a share of what is in use, is not reported.
MIN_RISE_BYTES, MIN_RISE_SHARE = 16 * MIB, 0.02
#: A forecast is reported again when it moves by more than this share.
FORECAST_SHIFT = 0.05
#: A batch larger than all before it by this factor is an outlier.
OUTLIER_RATIO = 1.3
#: Upper bound of a CUDA context with its libraries; more belongs to another process.
CONTEXT_BYTES = 2 * GIB
#: Free memory over requested memory from which a failed request means fragmentation.
FRAGMENTATION_RATIO = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A leak: bytes per optimizer step, and bytes in use now.

    `limit_bytes` is what is available, `forecast_step` the step at which it will be exceeded; both
    are None if the limit is unknown.
    """

    step: int
    bytes_per_step: int
    used_bytes: int
    limit_bytes: int | None = None
    forecast_step: int | None = None


@dataclass(slots=True)
class MemoryTrend:
    """Memory of one process after each step, and the extra that it needs within a step.

    Activations are freed between two steps, so steps with batches of different shapes compare.
    """

    limit_bytes: int | None = None
    _points: list[tuple[int, int]] = field(default_factory=list)
    _first_step: int | None = None
    _stride: int = 1
    _within_bytes: int = 0
    _largest_batch: int = 0
    _batches: int = 0

    def add(self, step: int, *, kept_bytes: int, peak_bytes: int, batch: int) -> None:
        """Add a finished step; `batch` is the number of elements of its largest tensor."""
        if self._first_step is None:
            self._first_step = step
        self._batches += 1
        self._largest_batch = max(self._largest_batch, batch)
        if step < self._first_step + WARM_UP_STEPS:
            return
        self._within_bytes = max(self._within_bytes, peak_bytes - kept_bytes)
        if not self._points or step >= self._points[-1][0] + self._stride:
            self._points.append((step, kept_bytes))
        if len(self._points) > MAX_POINTS:
            self._points, self._stride = self._points[::2], self._stride * 2

    def is_outlier(self, batch: int) -> bool:
        """Return whether a batch of this many elements is far larger than every earlier one."""
        return self._batches >= MIN_POINTS and batch > OUTLIER_RATIO * self._largest_batch > 0

    def growth(self) -> Growth | None:
        """Return the leak, or None if memory does not rise steadily (Theil-Sen slope)."""
        if len(self._points) < MIN_POINTS:
            return None
        slopes = sorted(
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in combinations(self._points, 2)
        )
        slope = statistics.median(slopes)
        step, used_bytes = self._points[-1]
        rise_bytes = slope * (step - self._points[0][0])
        min_rise_bytes = max(MIN_RISE_BYTES, MIN_RISE_SHARE * used_bytes)
        if slopes[len(slopes) // 4] <= 0 or rise_bytes < min_rise_bytes:
            return None
        forecast_step = None
        if self.limit_bytes is not None:
            level = statistics.median(kept - slope * step for step, kept in self._points)
            forecast_step = int((self.limit_bytes - self._within_bytes - level) / slope)
        return Growth(
            step=step,
            bytes_per_step=round(slope),
            used_bytes=used_bytes,
            limit_bytes=self.limit_bytes,
            forecast_step=forecast_step,
        )


class LeakDetector:
    """Follows the processes of one attempt.

    `data_limit_bytes` caps the private data of each process, `gpu_limit_bytes` what each process
    may reserve on each GPU.
    """

    def __init__(self, *, data_limit_bytes: int | None, gpu_limit_bytes: int | None) -> None:
        self._data_limit_bytes, self._gpu_limit_bytes = data_limit_bytes, gpu_limit_bytes
        self._trends: dict[int, MemoryTrend] = {}
        self._reported: dict[int, int | None] = {}

    def update(self, report: StepReport) -> Growth | None:
        """Return a leak that is new, or whose forecast has moved."""
        if report.memory is None:
            return None
        trend = self._trends.setdefault(report.pid, MemoryTrend())
        kept_bytes, peak_bytes, trend.limit_bytes = self._levels(report.memory)
        if kept_bytes is None:
            return None
        trend.add(
            report.step,
            kept_bytes=kept_bytes,
            peak_bytes=max(kept_bytes, peak_bytes or 0),
            batch=_elements(report.shapes),
        )
        growth = trend.growth()
        if growth is None:
            return None
        before, now = self._reported.get(report.pid), growth.forecast_step
        moved = before and now and abs(now - before) > FORECAST_SHIFT * before
        if report.pid in self._reported and not moved:
            return None
        self._reported[report.pid] = now
        return growth

    def cause(self, report: OomReport) -> Cause:
        """Return why memory ran out, as far as this report and earlier ones show."""
        trend = self._trends.get(report.pid, MemoryTrend())
        if trend.is_outlier(_elements(report.shapes)):
            return Cause.OUTLIER
        if trend.growth() is not None:
            return Cause.GROWTH
        return _cause_on(report.memory.cuda if report.memory else (), report.requested_bytes)

    def _levels(self, memory: ProcessMemory) -> tuple[int | None, int | None, int | None]:
        """Return bytes kept between steps, the peak within one, and the limit."""
        if not memory.cuda:
            data = memory.data_bytes if self._data_limit_bytes else None
            kept = data if data is not None else memory.rss_bytes
            return kept, memory.peak_data_bytes if data else kept, self._data_limit_bytes
        card = max(memory.cuda, key=lambda one: one.allocated_bytes or 0)
        available = (card.free_bytes or 0) + (card.reserved_bytes or 0)
        limits = [size for size in (available, self._gpu_limit_bytes) if size]
        return card.allocated_bytes, card.peak_allocated_bytes, min(limits, default=None)


def _elements(shapes: Shapes | None) -> int:
    """Return the number of elements of the largest tensor of a batch."""
    return max((math.prod(shape) for shape in (shapes or {}).values()), default=0)


def _cause_on(cards: Iterable[DeviceMemory], requested_bytes: int | None) -> Cause:
    for card in cards:
        others = card.beyond_reserved_bytes
        if others is None or card.free_bytes is None:
            continue
        reserved, allocated = card.reserved_bytes or 0, card.allocated_bytes or 0
        if others > CONTEXT_BYTES and others > reserved:
            return Cause.OTHER_PROCESS
        unused = reserved - allocated + card.free_bytes
        if requested_bytes and unused > FRAGMENTATION_RATIO * requested_bytes:
            return Cause.FRAGMENTATION
    return Cause.UNKNOWN
