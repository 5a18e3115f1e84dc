"""Install all hooks once torch is imported, and remove them."""

from __future__ import annotations

import functools
import os

from .cap import cap_from, cap_gpu_memory
from .channel import Channel
from .count_hooks import hook_backward, hook_counting
from .endings import Endings, watch_children
from .hooks import hook_libraries, hook_torch
from .reporter import Reporter
from .trial_hooks import hook_batches, hook_end, probe_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .imports import Finder

    Function = Callable[..., Any]
    Wrap = Callable[[Function], Function]


def install(
    torch: Any, finder: Finder, socket_path: str | None, buffer_folder: str | None
) -> Reporter:
    """Install all hooks; a failure is reported as a fault, and everything is undone."""
    reporter = Reporter(torch, Channel(socket_path, buffer_folder), quiet=_is_child())
    patches = Patches(reporter, _compiling_test(torch))
    endings = Endings(reporter)

    def uninstall() -> None:
        finder.uninstall()
        reporter.stop_counting()
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
        counting = hook_counting(torch, patches)
        reporter.stop_counting = counting.stop
        hook_torch(torch, patches)
        hook_backward(torch, patches, counting)
        if probe is not None:
            hook_end(torch, patches, probe)
        watch_children(torch, patches)
        hook_libraries(torch, finder, patches, counting)
        reporter.window = lambda: counting.do(counting.window)
        reporter.stepped = lambda window: counting.do(counting.stepped, window)
        reporter.restarted = counting.loss.forget
        limit_bytes = cap_from(os.environ)
        if limit_bytes is not None:
            cap_gpu_memory(torch, limit_bytes, patches)
    except Exception as error:  # noqa: BLE001 - it must never break the job
        reporter.disable(error)
    return reporter


def _is_child() -> bool:
    """Return whether `multiprocessing` spawned this process; forks are seen when they happen."""
    try:
        with open("/proc/self/cmdline", "rb") as cmdline:  # noqa: PTH123 - no pathlib
            return b"from multiprocessing." in cmdline.read()
    except OSError:
        return False


def _compiling_test(torch: Any) -> Callable[[], bool]:
    """Return the test for torch.compile's tracing; its place depends on the version."""
    for place in ("compiler", "_utils", "_dynamo"):
        test = getattr(getattr(torch, place, None), "is_compiling", None)
        if test is not None:
            found: Callable[[], bool] = test
            return found
    return lambda: False


class Patches:
    """Replaces functions of the job's libraries, and restores the originals."""

    def __init__(self, reporter: Reporter, is_compiling: Callable[[], bool]) -> None:
        self.reporter, self.is_compiling = reporter, is_compiling
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Make calls of `owner.name` a phase; do nothing if there is no such function."""
        self.replace(owner, name, lambda original: self.watching(original, phase))

    def replace(self, owner: Any, name: str, wrap: Wrap) -> None:
        """Replace `owner.name` by `wrap(original)`, as the kind of method it is."""
        current = vars(owner).get(name) if owner is not None else None
        if current is None:
            return
        if isinstance(current, (staticmethod, classmethod)):
            new: Any = type(current)(wrap(current.__func__))
        else:
            new = wrap(current)
        setattr(owner, name, new)
        self._replaced.append((owner, name, current, new))

    def undo(self) -> None:
        """Restore what nobody else replaced since; wrappers that others kept only pass through."""
        while self._replaced:
            owner, name, before, ours = self._replaced.pop()
            if vars(owner).get(name) is ours:
                setattr(owner, name, before)

    def watching(self, original: Function, phase: str) -> Function:
        """Wrap a function whose calls are a phase.

        While torch.compile traces, `is_compiling` is a constant: only the original is traced.
        """
        reporter, is_compiling = self.reporter, self.is_compiling

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if is_compiling() or reporter.disabled:
                return original(*args, **kwargs)
            before = reporter.enter(phase)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                reporter.failed(phase, before, error)
                raise
            reporter.leave(phase, before)
            return result

        return watched
