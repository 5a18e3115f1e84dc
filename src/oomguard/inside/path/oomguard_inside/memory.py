"""What this process uses: host memory from /proc, device memory from torch's allocator."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIELDS = {b"VmRSS:": "rss_bytes", b"VmHWM:": "peak_rss_bytes"}


def measure(torch: Any) -> dict[str, object]:
    """Measure without waiting for the device."""
    return {**_host(), "cuda": _cuda(torch)}


def _host() -> dict[str, int | None]:
    """Read the resident set and its peak; null where there is no /proc."""
    found: dict[str, int | None] = {"rss_bytes": None, "peak_rss_bytes": None}
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123 - no pathlib
            for line in status:
                name = _FIELDS.get(line[:6])
                if name is not None:
                    found[name] = int(line.split()[1]) * 1024
    except OSError:
        pass
    return found


def _cuda(torch: Any) -> list[dict[str, int]]:
    """Ask the allocator for each device this process has memory on; nothing initializes CUDA.

    `mem_get_info` makes a context of some 500 MB on a device that has none yet, so devices
    without reserved memory are left out.
    """
    cuda = getattr(torch, "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        in_use = [d for d in range(cuda.device_count()) if cuda.memory_reserved(d) > 0]
        return [_device(cuda, number) for number in in_use]
    except Exception:  # noqa: BLE001 - after a device fault every call may fail
        return []


def _device(cuda: Any, number: int) -> dict[str, int]:
    free_bytes, total_bytes = cuda.mem_get_info(number)
    return {
        "device": number,
        "allocated_bytes": cuda.memory_allocated(number),
        "reserved_bytes": cuda.memory_reserved(number),
        "peak_allocated_bytes": cuda.max_memory_allocated(number),
        "peak_reserved_bytes": cuda.max_memory_reserved(number),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }
