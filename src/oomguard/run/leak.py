"""Memory that rises step by step: seen by a robust slope, and how far it will go."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import combinations

from oomguard.units import MIB

#: Steps in which allocators warm up and optimizer states appear.
WARM_UP_STEPS = 3
#: Fewer points show no trend.
LEAST_POINTS = 8
#: More are thinned out: a trend over thousands of steps needs no more.
MOST_POINTS = 64
#: What rises by less, in bytes or as a share of what is in use, is not worth a word.
LEAST_RISE_BYTES, LEAST_RISE_SHARE = 16 * MIB, 0.02
#: A batch this much larger than all before it is an outlier.
OUTLIER_RATIO = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A trend: bytes per optimizer step, what is in use now, and where it ends.

    `limit_bytes` is what there is; `forecast_step` the step in which it will not be enough
    (None where there is no known limit).
    """

    step: int
    bytes_per_step: int
    used_bytes: int
    limit_bytes: int | None = None
    forecast_step: int | None = None


@dataclass(slots=True)
class Watch:
    """Follows what one process keeps between steps, and how much more it needs within one.

    Between two steps activations are gone, so that batches of different shapes compare.
    """

    limit_bytes: int | None = None
    _points: list[tuple[int, int]] = field(default_factory=list)
    _first_step: int | None = None
    _stride: int = 1
    _within_bytes: int = 0
    _largest_batch: int = 0
    _batches: int = 0

    def step(self, step: int, *, kept_bytes: int, peak_bytes: int, batch: int) -> None:
        """Take in one finished step; `batch` is the number of elements of its batch."""
        if self._first_step is None:
            self._first_step = step
        self._batches += 1
        self._largest_batch = max(self._largest_batch, batch)
        if step < self._first_step + WARM_UP_STEPS:
            return
        self._within_bytes = max(self._within_bytes, peak_bytes - kept_bytes)
        if not self._points or step >= self._points[-1][0] + self._stride:
            self._points.append((step, kept_bytes))
        if len(self._points) > MOST_POINTS:
            self._points, self._stride = self._points[::2], self._stride * 2

    def is_outlier(self, batch: int) -> bool:
        """Return whether a batch of so many elements is far larger than all that went well."""
        return self._batches >= LEAST_POINTS and batch > OUTLIER_RATIO * self._largest_batch > 0

    def growth(self) -> Growth | None:
        """Return the trend, or None where there is none."""
        if len(self._points) < LEAST_POINTS:
            return None
        slopes = sorted(
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in combinations(self._points, 2)
        )
        slope = statistics.median(slopes)
        step, used_bytes = self._points[-1]
        rise_bytes = slope * (step - self._points[0][0])
        least_bytes = max(LEAST_RISE_BYTES, LEAST_RISE_SHARE * used_bytes)
        if slopes[len(slopes) // 4] <= 0 or rise_bytes < least_bytes:
            return None
        return Growth(
            step=step,
            bytes_per_step=round(slope),
            used_bytes=used_bytes,
            limit_bytes=self.limit_bytes,
            forecast_step=self._forecast(slope),
        )

    def _forecast(self, slope: float) -> int | None:
        if self.limit_bytes is None:
            return None
        level = statistics.median(kept - slope * step for step, kept in self._points)
        return int((self.limit_bytes - self._within_bytes - level) / slope)
