"""Cap the GPU memory of this process, so that a large GPU behaves like a small one.

The cap is that of torch's caching allocator. It does not cover the CUDA context, NCCL's buffers
and the workspaces of libraries that allocate by themselves (about 0.5 GB), which
`torch.cuda.memory_reserved` does not count either.
"""

from __future__ import annotations

import functools
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .install import Function, Patches


def cap_from(environ: Mapping[str, str]) -> int | None:
    """Return the cap in bytes, None if there is none."""
    text = environ.get("OOMGUARD_GPU_MEMORY", "")
    return int(text) if text else None


def cap_gpu_memory(torch: Any, limit_bytes: int, patches: Patches) -> None:
    """Set the cap on each device that this process uses, as soon as it initializes CUDA.

    Setting it creates a context on the device. One rank of several uses its own device and those
    it selects by `set_device`. A single process may use all visible devices without selecting one.
    """
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not hasattr(cuda, "_lazy_call"):
        return
    cap = _Cap(cuda, limit_bytes)

    def guarded() -> None:
        try:
            cap.set_at_start(os.environ)
        except Exception as error:  # noqa: BLE001 - it runs inside the job's CUDA initialization
            patches.reporter.disable(error)

    def selecting(original: Function) -> Function:
        @functools.wraps(original)
        def set_device(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if not patches.is_compiling() and not patches.reporter.disabled:
                try:
                    cap.set_on(cuda.current_device())
                except Exception as error:  # noqa: BLE001 - see above
                    patches.reporter.disable(error)

        return set_device

    cuda._lazy_call(guarded)  # noqa: SLF001 - the only way to wait for CUDA; since torch 1.0
    patches.replace(cuda, "set_device", selecting)


class _Cap:
    def __init__(self, cuda: Any, limit_bytes: int) -> None:
        self._cuda, self._limit_bytes = cuda, limit_bytes
        self._done: set[int] = set()

    def set_at_start(self, environ: Mapping[str, str]) -> None:
        """Cap the devices of this process; the selected one stays selected."""
        count = self._cuda.device_count()
        local_rank = environ.get("LOCAL_RANK", "")
        own = [int(local_rank) % count] if local_rank.isdigit() and count else range(count)
        for number in own:
            self.set_on(number)

    def set_on(self, number: int) -> None:
        """Cap one device, once."""
        if number in self._done:
            return
        self._done.add(number)
        total_bytes = self._cuda.get_device_properties(number).total_memory
        fraction = min(1.0, self._limit_bytes / total_bytes)
        with self._cuda.device(number):  # setting it selects the device
            self._cuda.set_per_process_memory_fraction(fraction, number)
