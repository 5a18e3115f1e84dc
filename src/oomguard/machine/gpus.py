"""What memory this machine has: its GPUs as NVML sees them, its host RAM as cgroups bound it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import psutil
import pynvml  # type: ignore[import-untyped]  # nvidia-ml-py carries no types

from oomguard.machine.cgroups import PROC, own_groups
from oomguard.units import MIB, show_bytes

_TOLERANCE_BYTES = 256 * MIB  # other programs' contexts and the driver's own wobble
# Major compute capabilities. From Ampere on bf16 is native.
_AMPERE, _HOPPER = 8, 9
# Files of limit, usage and reclaimable page cache (a line of memory.stat) by cgroup version.
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU that the job may use; `index` counts as nvidia-smi does.

    `bfloat16` says whether it computes in bf16 (Ampere and later), `hopper` whether it is of that
    generation. Of a GPU that shares the host's RAM (`unified`: GB10, Jetson) NVML knows no memory;
    its bytes are those of the host.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    bfloat16: bool = True
    hopper: bool = False
    unified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """RAM that processes started from here may have in all, and what of it is there now."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeReport:
    """The result of waiting for the GPUs: as free as before, or what is still held.

    `held_bytes` maps a GPU's UUID to the bytes in use above those before.
    """

    free: bool
    waited_s: float
    held_bytes: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def busy(self) -> str:
        """Return what is still held, and where, as text; empty if nothing is."""
        return ", ".join(
            f"{uuid} holds {show_bytes(more_bytes)} more than before the attempt"
            for uuid, more_bytes in self.held_bytes.items()
        )


def gpus() -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; none without a driver.

    Indices are taken as PCI bus order; CUDA's own default order differs only where cards do.
    Slices of a card (MIG) are not looked into: a list that names one ends there.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = [gpu for index in range(pynvml.nvmlDeviceGetCount()) if (gpu := _gpu(index))]
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
    by_index = {gpu.index: gpu for gpu in found}
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    uuids = {gpu.index: gpu.uuid for gpu in found}
    return tuple(by_index[index] for index in visible(asked, uuids))


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def visible(asked: str | None, uuids: dict[int, str]) -> tuple[int, ...]:
    """Return which of the GPUs (index -> UUID) CUDA_VISIBLE_DEVICES leaves, in its order.

    As the CUDA C++ Programming Guide has it: what stands after the first invalid entry is
    hidden; a UUID may be shortened while it is unique; an entry given twice hides all.
    """
    if asked is None:
        return tuple(uuids)
    left: list[int] = []
    for entry in map(str.strip, asked.split(",")):
        index = _resolve(entry, uuids)
        if index is None:
            break
        if index in left:
            return ()
        left.append(index)
    return tuple(left)


def host_memory(procfs: Path = PROC) -> HostMemory:
    """Read the machine's RAM, bounded by the limit of every memory cgroup around this process."""
    machine = psutil.virtual_memory()
    total_bytes, available_bytes = machine.total, machine.available
    for limit_bytes, used_bytes in _cgroup_limits(procfs):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return HostMemory(total_bytes=total_bytes, available_bytes=available_bytes)


def wait_until_free(
    before: Sequence[Gpu],
    *,
    timeout_s: float = 60.0,
    poll_s: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    read: Callable[[], Sequence[Gpu]] = gpus,
) -> FreeReport:
    """Wait until each GPU's used bytes are back near what they were before, or the time is over.

    The driver gives memory back some time after the last process is gone. A GPU that is no
    longer listed holds nothing that can be waited for.
    """
    began = clock()
    while True:
        held = _held(before, read()) if before else {}
        waited_s = clock() - began
        if not held or waited_s >= timeout_s:
            return FreeReport(free=not held, waited_s=waited_s, held_bytes=MappingProxyType(held))
        sleep(min(poll_s, timeout_s - waited_s))


def _held(before: Sequence[Gpu], now: Sequence[Gpu]) -> dict[str, int]:
    # What is in use of the host's RAM is every program's.
    used = {gpu.uuid: gpu.used_bytes for gpu in now if not gpu.unified}
    above = {gpu.uuid: used.get(gpu.uuid, 0) - gpu.used_bytes for gpu in before}
    return {uuid: more for uuid, more in above.items() if more > _TOLERANCE_BYTES}


def _gpu(index: int) -> Gpu | None:
    """Read one GPU; None where it does not answer (off the bus)."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        unified, total_bytes, used_bytes = _memory(handle)
        generation = pynvml.nvmlDeviceGetCudaComputeCapability(handle)[0]
        return Gpu(
            index=index,
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            name=str(pynvml.nvmlDeviceGetName(handle)),
            total_bytes=total_bytes,
            used_bytes=used_bytes,
            bfloat16=generation >= _AMPERE,
            hopper=generation == _HOPPER,
            unified=unified,
        )
    except pynvml.NVMLError:
        return None


def _memory(handle: object) -> tuple[bool, int, int]:
    """Return whether a GPU shares the host's RAM, and its bytes in all and in use.

    `nvidia-smi` shows "Not Supported" as the memory of a GB10, NVML raises or reports 0.
    """
    total_bytes = used_bytes = 0
    with suppress(pynvml.NVMLError_NotSupported):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total_bytes, used_bytes = int(memory.total), int(memory.used)
    if total_bytes:
        return False, total_bytes, used_bytes
    host = host_memory()
    return True, host.total_bytes, host.total_bytes - host.available_bytes


def _resolve(entry: str, uuids: dict[int, str]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) in uuids else None
    if not entry.startswith("GPU-"):
        return None
    found = [index for index, uuid in uuids.items() if uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _cgroup_limits(procfs: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and usage (reclaimable cache not counted), in bytes, of each group upwards."""
    for own in own_groups(procfs):
        limit_name, usage_name, cache_name = _CGROUP_FILES[own.version]
        for group in (own.folder, *own.folder.parents):
            with suppress(OSError, ValueError):  # `max`, or a root that has no limit
                limit_bytes = int((group / limit_name).read_text())
                used_bytes = int((group / usage_name).read_text())
                yield limit_bytes, used_bytes - _stat(group, cache_name)
            if group == own.top:
                break


def _stat(group: Path, name: str) -> int:
    for line in (group / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
