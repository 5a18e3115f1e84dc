"""Detect memory leaks from the monitor's reports: slope, forecast, and the cause of an OOM."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from oomguard.evidence.verdict import Cause
from oomguard.process.messages import (
    DeviceMemory,
    OomReport,
    Pass,
    ProcessMemory,
    Shapes,
    StepReport,
)
from oomguard.units import GIB, MIB

#: Steps in which allocators warm up and optimizer states are created.
WARM_UP_STEPS = 3
#: Points needed for a trend, and points kept: longer runs are thinned out.
MIN_POINTS, MAX_POINTS = 8, 64
#: Pairs of comparable points needed for a trend: those of `MIN_POINTS` equal batches.
MIN_PAIRS = MIN_POINTS * (MIN_POINTS - 1) // 2
#: Backward passes needed on new shapes, and on repeated ones, to tell what memory grows with.
MIN_PASSES = 4
#: Where memory grows with new shapes alone, one adds this many times what a repeated one does.
SHAPE_RATIO = 4
#: Where shapes are not known, batches are compared by what they take, in units of this size.
SIZE_BYTES = 4 * MIB
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
    are None if the limit is unknown. `per_shape_bytes` is what each new shape of a batch adds, if
    only new shapes add to it; `rise_bytes` is what was added since memory is followed.
    """

    step: int
    bytes_per_step: int
    used_bytes: int
    limit_bytes: int | None = None
    forecast_step: int | None = None
    per_shape_bytes: int | None = None
    rise_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Memory kept after one step or backward pass; the sizes of its batch and of the largest."""

    at: int
    kept_bytes: int
    batch: int
    largest: int


def slopes(levels: Sequence[Level]) -> list[float]:
    """Return the sorted slopes between levels that differ only by what was trained in between.

    A batch that is no larger than an earlier one needs no more memory than it, unless one between
    them was larger: allocators keep what that one needed.
    """
    return sorted(
        (later.kept_bytes - earlier.kept_bytes) / (later.at - earlier.at)
        for earlier, later in combinations(levels, 2)
        if later.batch <= earlier.batch and later.largest == earlier.largest
    )


@dataclass(slots=True)
class MemoryTrend:
    """Memory of one process after each step or backward pass, and what is needed within one."""

    limit_bytes: int | None = None
    _levels: list[Level] = field(default_factory=list)
    _first_step: int | None = None
    _stride: int = 1
    _within_bytes: int = 0
    _largest_batch: int = 0
    _batches: int = 0

    def add(self, step: int, *, kept_bytes: int, peak_bytes: int, batch: int) -> None:
        """Add a finished step; `batch` is the number of elements of its largest tensor.

        Where it is 0, because shapes are not known, batches are compared by what they take.
        """
        if self._first_step is None:
            self._first_step = step
        self._batches += 1
        size = batch or max(0, peak_bytes - kept_bytes) // SIZE_BYTES
        self._largest_batch = max(self._largest_batch, size)
        if step < self._first_step + WARM_UP_STEPS:
            return
        self._within_bytes = max(self._within_bytes, peak_bytes - kept_bytes)
        if not self._levels or step >= self._levels[-1].at + self._stride:
            self._levels.append(
                Level(at=step, kept_bytes=kept_bytes, batch=size, largest=self._largest_batch)
            )
        if len(self._levels) > MAX_POINTS:
            self._levels, self._stride = self._levels[::2], self._stride * 2

    def is_outlier(self, batch: int) -> bool:
        """Return whether a batch of this many elements is far larger than every earlier one."""
        return self._batches >= MIN_POINTS and batch > OUTLIER_RATIO * self._largest_batch > 0

    def explains(self, growth: Growth, batch: int) -> bool:
        """Return whether a batch of this many elements would have fitted without the growth.

        A larger batch than all before may have run out for its size alone.
        """
        largest = self._largest_batch
        extra = self._within_bytes * (batch / largest - 1) if batch > largest > 0 else 0
        return growth.rise_bytes >= extra

    def growth(self) -> Growth | None:
        """Return the leak, or None if memory does not rise steadily (Theil-Sen slope)."""
        found = slopes(self._levels)
        if len(found) < MIN_PAIRS:
            return None
        slope, last = statistics.median(found), self._levels[-1]
        rise_bytes = slope * (last.at - self._levels[0].at)
        min_rise_bytes = max(MIN_RISE_BYTES, MIN_RISE_SHARE * last.kept_bytes)
        if found[len(found) // 4] <= 0 or rise_bytes < min_rise_bytes:
            return None
        forecast_step = None
        if self.limit_bytes is not None:
            level = statistics.median(one.kept_bytes - slope * one.at for one in self._levels)
            forecast_step = int((self.limit_bytes - self._within_bytes - level) / slope)
        return Growth(
            step=last.at,
            bytes_per_step=round(slope),
            used_bytes=last.kept_bytes,
            limit_bytes=self.limit_bytes,
            forecast_step=forecast_step,
            rise_bytes=round(rise_bytes),
        )


@dataclass(slots=True)
class PassTrend:
    """The first backward passes of one process: they show growth before there are many steps."""

    trend: MemoryTrend = field(default_factory=MemoryTrend)
    _count: int = 0
    _shapes: int = 0
    _after_bytes: int | None = None
    _fresh: list[int] = field(default_factory=list)
    _repeated: list[int] = field(default_factory=list)

    def add(self, seen: Pass) -> None:
        """Add the next backward pass."""
        self._count += 1
        before_bytes = max(seen.before_bytes, seen.after_bytes)
        self.trend.add(
            self._count,
            kept_bytes=seen.after_bytes,
            peak_bytes=before_bytes,
            batch=seen.elements,
        )
        if self._count > WARM_UP_STEPS and self._after_bytes is not None:
            rises = self._fresh if seen.shapes > self._shapes else self._repeated
            rises.append(seen.after_bytes - self._after_bytes)
        self._shapes, self._after_bytes = seen.shapes, seen.after_bytes

    def growth(self, steps: int) -> Growth | None:
        """Return the leak per optimizer step, of which there were `steps` so far."""
        found = self.trend.growth()
        if found is None:
            return None
        passes = self._count / max(1, steps)
        left = None if found.forecast_step is None else found.forecast_step - found.step
        return replace(
            found,
            step=steps,
            bytes_per_step=round(found.bytes_per_step * passes),
            forecast_step=None if left is None else steps + int(left / passes),
            per_shape_bytes=self.per_shape_bytes(),
        )

    def per_shape_bytes(self) -> int | None:
        """Return what a batch of a new shape adds; None if repeated ones add to memory as well."""
        if min(len(self._fresh), len(self._repeated)) < MIN_PASSES:
            return None
        each, again = statistics.median(self._fresh), statistics.median(self._repeated)
        return round(each) if each > SHAPE_RATIO * abs(again) else None


@dataclass(slots=True)
class ProcessTrend:
    """What was seen of one process: its steps, and the backward passes of the first ones."""

    steps: MemoryTrend = field(default_factory=MemoryTrend)
    passes: PassTrend = field(default_factory=PassTrend)
    step: int = 0

    def growth(self) -> Growth | None:
        """Return the leak that the steps show, or the passes while steps are few."""
        if self._by_passes:
            return self.passes.growth(self.step)
        found = self.steps.growth()
        return found and replace(found, per_shape_bytes=self.passes.per_shape_bytes())

    @property
    def _by_passes(self) -> bool:
        return self.step <= 2 * MIN_POINTS and self.steps.growth() is None

    def cause(self, batch: int) -> Cause | None:
        """Return whether growth or a far larger batch explains an OOM; None for neither."""
        growth, seen = self.growth(), self.passes.trend if self._by_passes else self.steps
        if growth is not None and seen.explains(growth, batch):
            return Cause.GROWTH
        return Cause.OUTLIER if self.steps.is_outlier(batch) else None


class LeakDetector:
    """Follows the processes of one attempt.

    `data_limit_bytes` caps the private data of each process, `gpu_limit_bytes` what each process
    may reserve on each GPU.
    """

    def __init__(self, *, data_limit_bytes: int | None, gpu_limit_bytes: int | None) -> None:
        self._data_limit_bytes, self._gpu_limit_bytes = data_limit_bytes, gpu_limit_bytes
        self._processes: dict[int, ProcessTrend] = {}
        self._reported: dict[int, int | None] = {}

    def update(self, report: StepReport) -> Growth | None:
        """Return a leak that is new, or whose forecast has moved."""
        if report.memory is None:
            return None
        kept_bytes, peak_bytes, limit_bytes = self._levels(report.memory)
        if kept_bytes is None:
            return None
        process = self._follow(report)
        process.steps.limit_bytes = process.passes.trend.limit_bytes = limit_bytes
        process.steps.add(
            report.step,
            kept_bytes=kept_bytes,
            peak_bytes=max(kept_bytes, peak_bytes or 0),
            batch=_elements(report.shapes),
        )
        growth = process.growth()
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
        found = self._follow(report).cause(_elements(report.shapes))
        if found is not None:
            return found
        return _cause_on(report.memory.cuda if report.memory else (), report.requested_bytes)

    def _follow(self, report: StepReport | OomReport) -> ProcessTrend:
        """Return what is known of the process of a report, the passes since the last included."""
        process = self._processes.setdefault(report.pid, ProcessTrend())
        process.step = report.step
        for one in report.passes:
            process.passes.add(one)
        return process

    def _levels(self, memory: ProcessMemory) -> tuple[int | None, int | None, int | None]:
        """Return bytes kept between steps, the peak within one, and the limit."""
        if not memory.cuda:
            data = memory.data_bytes if self._data_limit_bytes else None
            kept = data if data is not None else memory.rss_bytes
            within = (memory.peak_data_bytes or 0) - (memory.data_bytes or 0)
            return kept, None if kept is None else kept + within, self._data_limit_bytes
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
