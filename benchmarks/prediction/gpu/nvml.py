"""What NVML says of this process."""

from __future__ import annotations

import os

import pynvml


def driver() -> str:
    """Return the driver's version."""
    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def of_this_process() -> int | None:
    """Return what this process holds on the first card, its context included, in bytes.

    None where NVML lists the process under another number (a container's own) or not at all.
    """
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid():
            return None if process.usedGpuMemory is None else int(process.usedGpuMemory)
    return None
