"""Report how a process ends: normally, or by an exception of it, a thread or a child."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.process
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .install import Function, Patches
    from .reporter import Reporter

#: A program that replaces the hook repeatedly must not build an endless chain.
_MAX_HOOKS = 8


class Endings:
    """Runs after the job's own hooks, so that its traceback is printed before the report."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._hook: Any = None
        self._before: Any = None
        self._hooks_left = _MAX_HOOKS
        self._thread_hook: Any = None

    def install(self) -> None:
        """Hook exceptions of the process and its threads, its exit, and forks."""
        self.keep_excepthook()
        before = threading.excepthook

        def thread_hook(args: Any) -> None:
            try:
                before(args)
            finally:
                if args.exc_type is not SystemExit:
                    self._report(args.exc_value)

        self._thread_hook = (before, thread_hook)
        threading.excepthook = thread_hook
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._reporter.forked)

    def keep_excepthook(self) -> None:
        """Wrap `sys.excepthook` again if the job has replaced it."""
        if sys.excepthook is self._hook or self._hooks_left == 0 or self._reporter.disabled:
            return
        self._hooks_left -= 1
        before = sys.excepthook

        def excepthook(kind: Any, error: Any, trace: Any) -> None:
            try:
                before(kind, error, trace)
            finally:
                self._report(error)

        self._before, self._hook = before, excepthook
        sys.excepthook = excepthook

    def uninstall(self) -> None:
        """Restore the hooks that are still ours."""
        if self._hook is not None and sys.excepthook is self._hook:
            sys.excepthook = self._before
        if self._thread_hook is not None and threading.excepthook is self._thread_hook[1]:
            threading.excepthook = self._thread_hook[0]
        atexit.unregister(self._at_exit)

    def _report(self, error: BaseException | None) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or replaced by anything
                stream.flush()
        if error is not None:
            self._reporter.ended(error)

    def _at_exit(self) -> None:
        """Report an exception that a later hook hid from ours; then send `bye`."""
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if isinstance(error, BaseException):
            self._report(error)
        self._reporter.bye()


def watch_children(torch: Any, patches: Patches) -> None:
    """Report the exception that ends a `multiprocessing` child, for which no excepthook runs.

    `_bootstrap` prints the traceback of what `run` raised, so the report comes after it.
    torch.multiprocessing.spawn catches what its function raises; that is reported here too.
    """
    fatal: list[BaseException] = []

    def remembering(original: Function) -> Function:
        @functools.wraps(original)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except Exception as error:
                fatal.append(error)
                raise

        return remembered

    def reporting(original: Function) -> Function:
        @functools.wraps(original)
        def bootstrap(*args: Any, **kwargs: Any) -> Any:
            code = original(*args, **kwargs)
            if code and fatal:
                patches.reporter.ended(fatal[-1])
            return code

        return bootstrap

    def spawning(original: Function) -> Function:
        @functools.wraps(original)
        def wrapped(function: Function, *args: Any, **kwargs: Any) -> Any:
            return original(remembering(function), *args, **kwargs)

        return wrapped

    patches.replace(multiprocessing.process.BaseProcess, "run", remembering)
    patches.replace(multiprocessing.process.BaseProcess, "_bootstrap", reporting)
    spawn = getattr(getattr(torch, "multiprocessing", None), "spawn", None)
    patches.replace(sys.modules.get(getattr(spawn, "__module__", "")), "_wrap", spawning)
