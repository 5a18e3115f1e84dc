"""Recognize an out-of-memory exception, and read the sizes in its message."""

from __future__ import annotations

import errno
import re

from . import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CUDA, CPU = "cuda", "cpu"

#: Parts of messages, and the device that ran out; None for another one. A test checks each against
#: oomguard's own table for logs (evidence/signatures.py).
#: Source: what PyTorch, the CUDA libraries and the kernel's errno texts print.
_TEXTS: tuple[tuple[str, str | None], ...] = (
    ("DefaultCPUAllocator: can't allocate memory", CPU),
    ("DefaultCPUAllocator: not enough memory", CPU),
    ("std::bad_alloc", CPU),
    ("[Errno 12]", CPU),
    ("Cannot allocate memory", CPU),
    ("unable to allocate shared memory(shm)", CPU),
    ("caused by insufficient shared memory (shm)", CPU),
    ("workers are out of shared memory", CPU),
    ("is killed by signal: Bus error", CPU),
    ("CUDA out of memory", CUDA),
    ("CUDA error: out of memory", CUDA),
    ("CUDA driver error: out of memory", CUDA),
    ("CUDA failed with error out of memory", CUDA),
    ("cuda runtime error (2) : out of memory", CUDA),
    ("Cuda failure 'out of memory'", CUDA),
    ("CUDA_ERROR_OUT_OF_MEMORY", CUDA),
    ("cudaErrorMemoryAllocation", CUDA),
    ("CUBLAS_STATUS_ALLOC_FAILED", CUDA),
    ("CUDNN_STATUS_ALLOC_FAILED", CUDA),
    ("CUSOLVER_STATUS_ALLOC_FAILED", CUDA),
    ("CUFFT_ALLOC_FAILED", CUDA),
    ("HIP out of memory", CUDA),  # ROCm calls its device cuda
    ("HIP error: out of memory", CUDA),
    ("hipErrorOutOfMemory", CUDA),
    ("XPU out of memory", None),
    ("UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", None),
    ("NPU out of memory", None),
    ("MPS backend out of memory", None),
    ("PT_DEVMEM Allocation failed", None),
    ("out of device memory on current platform", None),
    ("Ran out of memory in memory space", None),
    ("RESOURCE_EXHAUSTED: Out of memory", None),
    ("RESOURCE_EXHAUSTED: OOM", None),
    ("RESOURCE_EXHAUSTED: Ran out of memory", None),
    ("RESOURCE_EXHAUSTED: Failed to allocate", None),
    ("RESOURCE_EXHAUSTED: failed to allocate", None),
    ("RESOURCE_EXHAUSTED: Error allocating", None),
    ("RESOURCE_EXHAUSTED: XLA:TPU", None),
    ("No executable batch size found", None),  # accelerate, after an OOM at every batch size
)
#: Once cudaMalloc has failed, the allocator asks NVML, which a Jetson or a slice of a card lacks.
#: Source: pytorch/pytorch#112377, #185240
_ASKED_NVML = re.compile(
    r"NVML_SUCCESS == .{1,60}INTERNAL ASSERT FAILED at .{0,200}CUDACachingAllocator\.cpp"
)
#: Messages that look like an OOM and are not: the loader ran out of TLS slots, a shape is wrong,
#: the limit on locked memory is too low.
_LOOK_ALIKES = ("static TLS block", "more than 1EB memory", "ibv_reg_mr failed")
#: What oneDNN says of any failure to set up a kernel, an allocation among them: an OOM only where
#: the process has used up its limit of private data.
#: Source: uxlfoundation/oneDNN include/oneapi/dnnl/dnnl.hpp
_OF_ONEDNN = ("could not create a primitive", "could not create a memory", "could not execute a")
_DEVICE_TYPES = frozenset({"OutOfMemoryError"})

_UNITS = {"bytes": 0, "byte": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_SIZE = r"(\d+(?:\.\d+)?) ?(bytes?|[KMGTPE]i?B|B)\b"
_REQUESTED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) " + _SIZE)
_TOTAL = re.compile(r"total capacity of " + _SIZE + r"|; " + _SIZE + " total capacity")
_ALLOWED = re.compile(_SIZE + r" allowed;|max allowed: " + _SIZE)


class FoundOom:
    """An out-of-memory exception, its text and its device."""

    __slots__ = ("device", "error", "text")

    def __init__(self, error: BaseException, text: str, device: str | None) -> None:
        self.error, self.text, self.device = error, text, device


def find(error: BaseException) -> FoundOom | None:
    """Return the out-of-memory exception that `error` is, or that caused it."""
    for one in chain(error):
        text = text_of(one)
        if any(part in text for part in _LOOK_ALIKES):
            continue
        is_memory, device = _recognize(one, text)
        if is_memory:
            return FoundOom(one, text, device)
    return None


def requested_bytes(text: str) -> int | None:
    """Return the size that was requested; torch prints two decimals."""
    return _size(_REQUESTED.search(text))


def capacity_bytes(text: str) -> int | None:
    """Return the capacity: the smaller of the device's total and the limit of a cap."""
    stated = [_size(_TOTAL.search(text)), _size(_ALLOWED.search(text))]
    return min((size for size in stated if size is not None), default=None)


def text_of(error: BaseException) -> str:
    """Return the message of an exception, empty if its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - any class of the job
        return ""


def chain(error: BaseException, limit: int = 16) -> Iterator[BaseException]:
    """Yield an exception, the members of its group, its causes and contexts, each once."""
    waiting = [error]
    seen: set[int] = set()
    while waiting and len(seen) < limit:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members = getattr(one, "exceptions", None)
        more = [*(members if isinstance(members, tuple) else ()), one.__cause__, one.__context__]
        waiting += [other for other in more if isinstance(other, BaseException)]


def _recognize(error: BaseException, text: str) -> tuple[bool, str | None]:
    if isinstance(error, MemoryError):
        return True, CPU
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True, CPU
    for fragment, device in _TEXTS:
        if fragment in text:
            return True, device
    if _ASKED_NVML.search(text):
        return True, CUDA
    if any(fragment in text for fragment in _OF_ONEDNN) and usage.is_data_full():
        return True, CPU
    return type(error).__name__ in _DEVICE_TYPES, None


def _size(match: re.Match[str] | None) -> int | None:
    if match is None:
        return None
    number, unit = [group for group in match.groups() if group is not None]
    shift = _UNITS[unit] if unit in _UNITS else _UNITS[unit[0]]
    return round(float(number) * (1 << shift)) if shift else int(float(number))
