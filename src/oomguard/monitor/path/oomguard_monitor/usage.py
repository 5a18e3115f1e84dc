"""Measure this process: host memory from /proc, GPU memory from torch's allocator."""

from __future__ import annotations

import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIELDS = {b"VmRSS:": "rss_bytes", b"VmHWM:": "peak_rss_bytes", b"VmData": "data_bytes"}
#: Share of RLIMIT_DATA from which a process has used it up, but for blocks too large for the rest.
_FULL_SHARE = 0.9
_PAGE_BYTES = resource.getpagesize()


def measure(torch: Any) -> dict[str, object]:
    """Return the memory of a report, without waiting for the device."""
    return {**_host(), "cuda": _cuda(torch)}


def _host() -> dict[str, int | None]:
    """Return resident set, its peak and private data; null without /proc."""
    found: dict[str, int | None] = dict.fromkeys(_FIELDS.values())
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123 - no pathlib
            for line in status:
                name = _FIELDS.get(line[:6])
                if name is not None:
                    found[name] = int(line.split()[1]) * 1024
    except OSError:
        pass
    return found


def data_bytes() -> int:
    """Return private data as RLIMIT_DATA counts it; cheap enough for a hook."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - no pathlib
            return int(statm.read().split()[5]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def is_data_full() -> bool:
    """Return whether private data is limited and close to its limit."""
    limit_bytes = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return limit_bytes != resource.RLIM_INFINITY and data_bytes() >= _FULL_SHARE * limit_bytes


def held_bytes(torch: Any, data_bytes: int) -> int:
    """Return what tensors hold on the GPUs in use; `data_bytes` where none is in use."""
    found = _cuda_stats(torch)
    return sum(stats.get("allocated_bytes.all.current", 0) for _, stats in found) or data_bytes


def _cuda(torch: Any) -> list[dict[str, int | None]]:
    """Return the allocator's figures of each device in use, without initializing CUDA.

    `mem_get_info` creates a context of about 500 MB on a device that has none yet, so devices on
    which nothing was ever reserved are left out.
    """
    return [_device(torch.cuda, *one) for one in _cuda_stats(torch)]


def _cuda_stats(torch: Any) -> list[tuple[int, dict[str, int]]]:
    """Return the number and the allocator's statistics of each device in use."""
    cuda = getattr(torch, "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        found = [(number, cuda.memory_stats(number)) for number in range(cuda.device_count())]
        return [one for one in found if one[1].get("reserved_bytes.all.peak")]
    except Exception:  # noqa: BLE001 - allocators other than torch's have no statistics
        return []


def _device(cuda: Any, number: int, stats: dict[str, int]) -> dict[str, int | None]:
    free_bytes, total_bytes = _free_and_total(cuda, number)
    return {
        "device": number,
        "allocated_bytes": stats.get("allocated_bytes.all.current"),
        "reserved_bytes": stats.get("reserved_bytes.all.current"),
        "peak_allocated_bytes": stats.get("allocated_bytes.all.peak"),
        "peak_reserved_bytes": stats.get("reserved_bytes.all.peak"),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }


def _free_and_total(cuda: Any, number: int) -> tuple[int | None, int | None]:
    try:
        free_bytes, total_bytes = cuda.mem_get_info(number)
    except Exception:  # noqa: BLE001 - after a device fault the driver does not answer
        return None, None
    return free_bytes, total_bytes
