"""The memory caps of one attempt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class CapBy(str, Enum):
    """What holds the job to its host memory cap."""

    RLIMIT = "rlimit"  # RLIMIT_DATA of each process: an allocation fails, needs no rights
    CGROUP = "cgroup"  # all processes together: the kernel's OOM killer strikes


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Caps in bytes; None is no cap. The one on GPU memory is per process and GPU."""

    host_memory_bytes: int | None = None
    host_memory_by: CapBy = CapBy.RLIMIT
    gpu_memory_bytes: int | None = None

    @property
    def data_bytes(self) -> int | None:
        """What RLIMIT_DATA is to be, if the cap is held by it."""
        return self.host_memory_bytes if self.host_memory_by is CapBy.RLIMIT else None

    @property
    def cgroup_bytes(self) -> int | None:
        """What the attempt's cgroup is to be limited to, if the cap is held by it."""
        return self.host_memory_bytes if self.host_memory_by is CapBy.CGROUP else None
