"""Put everything in place once torch is there, and take it out again."""

from __future__ import annotations

import os

from .cap import cap_from, cap_gpu_memory
from .channel import Channel
from .endings import Endings, watch_children
from .hooks import hook_libraries, hook_torch
from .patches import Patches
from .reporter import Reporter
from .trial_hooks import hook_batches, hook_end, probe_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .imports import Finder


def install(
    torch: Any, finder: Finder, socket_path: str | None, buffer_folder: str | None
) -> Reporter:
    """Start reporting; what fails on the way is reported as a fault and undone."""
    reporter = Reporter(torch, Channel(socket_path, buffer_folder), quiet=_is_child())
    patches = Patches(reporter, _compiling_test(torch))
    endings = Endings(reporter)

    def uninstall() -> None:
        finder.uninstall()
        patches.undo()
        endings.uninstall()

    reporter.uninstall = uninstall
    try:
        endings.install()
        reporter.before_line = endings.keep_excepthook
        reporter.hello()
        probe = probe_from(os.environ)
        if probe is not None:
            hook_batches(torch, finder, patches, probe)
        hook_torch(torch, patches)
        if probe is not None:
            hook_end(torch, patches, probe)
        watch_children(torch, patches)
        hook_libraries(finder, patches)
        limit_bytes = cap_from(os.environ)
        if limit_bytes is not None:
            cap_gpu_memory(torch, limit_bytes, patches)
    except Exception as error:  # noqa: BLE001 - never the job's trouble
        reporter.step_aside(error)
    return reporter


def _is_child() -> bool:
    """Whether this is a process that `multiprocessing` spawned; forks are told at the fork."""
    try:
        with open("/proc/self/cmdline", "rb") as cmdline:  # noqa: PTH123 - no pathlib
            return b"from multiprocessing." in cmdline.read()
    except OSError:
        return False


def _compiling_test(torch: Any) -> Callable[[], bool]:
    """Find the test for torch.compile's tracing; it has moved between versions."""
    for place in ("compiler", "_utils", "_dynamo"):
        test = getattr(getattr(torch, place, None), "is_compiling", None)
        if test is not None:
            found: Callable[[], bool] = test
            return found
    return lambda: False
