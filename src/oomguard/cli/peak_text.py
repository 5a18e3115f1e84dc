"""The peaks of an attempt, each in its measure, with the limit that counts in the same. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from oomguard.process.limits import CapBy
from oomguard.run.events import Limits
from oomguard.units import show_bytes


class MeasuredPeaks(Protocol):
    """An attempt, running or in a report."""

    @property
    def device_peak_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def reserved_peak_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def data_peak_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def host_peak_bytes(self) -> int | None: ...  # noqa: D102


class Measure(str, Enum):
    """What a peak counts, the most telling first."""

    GPU = "GPU memory"  # allocated
    RESERVED = "reserved GPU memory"
    HOST = "host memory"  # resident, of one process
    DATA = "private data of a process"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPeak:
    """A peak; `limit_bytes` is None where no limit counts in its measure."""

    size_bytes: int
    measure: Measure
    limit_bytes: int | None = None

    @property
    def limit(self) -> str:
        """Return the limit in brackets, with a space before it; nothing where there is none."""
        return "" if self.limit_bytes is None else f" (limit {show_bytes(self.limit_bytes)})"

    def __str__(self) -> str:
        return f"{show_bytes(self.size_bytes)} {self.measure.value}{self.limit}"


def peaks(one: MeasuredPeaks, limits: Limits | None) -> Iterator[ShownPeak]:
    """Yield the peaks that were measured.

    A limit on a GPU counts what the allocator reserves, one by RLIMIT_DATA the private data of each
    process, and one by a cgroup all processes together, which nothing here measures.
    """
    on_gpu = limits.gpu_memory_bytes if limits else None
    by_process = limits is not None and limits.host_memory_by == CapBy.RLIMIT
    on_data = limits.host_memory_bytes if limits and by_process else None
    for size_bytes, measure, limit_bytes in (
        (one.device_peak_bytes, Measure.GPU, None),
        (one.reserved_peak_bytes, Measure.RESERVED, on_gpu),
        (one.host_peak_bytes, Measure.HOST, None),
        (one.data_peak_bytes, Measure.DATA, on_data),
    ):
        if size_bytes:
            yield ShownPeak(size_bytes=size_bytes, measure=measure, limit_bytes=limit_bytes)


def main_peak(one: MeasuredPeaks, limits: Limits | None) -> ShownPeak | None:
    """Return the peak to show alone: of the GPU, else of the host; where it is limited, that one.

    None where nothing was measured.
    """
    known = list(peaks(one, limits))
    on_gpu = [peak for peak in known if peak.measure in (Measure.GPU, Measure.RESERVED)]
    return min(on_gpu or known, key=lambda peak: peak.limit_bytes is None, default=None)
