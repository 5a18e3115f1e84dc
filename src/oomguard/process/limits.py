"""The memory caps of one attempt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class CapBy(str, Enum):
    """What enforces the cap on host memory."""

    RLIMIT = "rlimit"  # RLIMIT_DATA of each process: an allocation fails; needs no permissions
    CGROUP = "cgroup"  # all processes together: the kernel's OOM killer acts


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Caps in bytes, None for no cap. The cap on GPU memory is per process and GPU."""

    host_memory_bytes: int | None = None
    host_memory_by: CapBy = CapBy.RLIMIT
    gpu_memory_bytes: int | None = None

    @property
    def data_bytes(self) -> int | None:
        """RLIMIT_DATA of each process, if that enforces the cap."""
        return self.host_memory_bytes if self.host_memory_by is CapBy.RLIMIT else None

    @property
    def cgroup_bytes(self) -> int | None:
        """Limit of the attempt's cgroup, if that enforces the cap."""
        return self.host_memory_bytes if self.host_memory_by is CapBy.CGROUP else None
