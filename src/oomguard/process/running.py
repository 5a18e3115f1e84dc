"""A running attempt: signal it, stop it, list its processes, clean up after it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from oomguard.machine.cgroups import Cgroup
from oomguard.process.child import Child
from oomguard.process.members import Members, catches
from oomguard.process.messages import Emit, Kernel, ProcessExited
from oomguard.process.report_server import ReportServer
from oomguard.process.stop import StopReport, send, stop_all
from oomguard.process.tee import Tee

_LINGER_S = 0.5  # for output of processes that outlive the direct child
_DRAIN_S = 10.0  # longest wait for an `emit` that blocks
_REAP_S = 1.0
_KERNEL_POLL_S, _KERNEL_CLOSE_S = 0.2, 1.0


class Running:
    """The processes of an attempt. Every method may be called from any thread, repeatedly.

    `pid` is the direct child, which leads the session; `started` is in seconds since the epoch;
    `kernel_watched` tells whether a kill by the kernel's OOM killer would be seen; `cgroup` is the
    folder of the attempt's own cgroup, if it has one. The exit code is written to `exit_file` at
    once: oomguard may be killed before it can record it.
    """

    def __init__(
        self,
        *,
        emit: Emit,
        kernel: KernelWatch,
        reports: ReportServer | None,
        cgroup: str | None,
        exit_file: Path,
    ) -> None:
        self._emit, self._kernel, self._reports = emit, kernel, reports
        self.cgroup, self._exit_file = cgroup, exit_file
        self.kernel_watched = kernel.watched
        self._stopping, self._closing = threading.Lock(), threading.Lock()
        self._closed = False
        self._deadline: float | None = None
        self._deadline_lock = threading.Lock()

    def begin(self, *, child: Child, tee: Tee, members: Members, resources: ExitStack) -> None:
        """Set what could only be created after this object, and let exit events be emitted."""
        self._child, self._tee, self._members = child, tee, members
        self._resources = resources
        self.pid, self.started = child.pid, child.started
        child.release()

    @property
    def log_error(self) -> str | None:
        """Why the log is incomplete, None if it is not."""
        return self._tee.log_error

    def signal(self, signum: int) -> None:
        """Send a signal to the whole process group, as Ctrl-C in a terminal would.

        SIGUSR1 kills a process that has no handler for it, so only those with one get it, in any
        group; if there is none, all get SIGTERM instead.
        """
        if signum == signal.SIGUSR1:
            waiting = [one for one in self._members.scan() if catches(one.pid, signum)]
            send(waiting, signum)
            signum = 0 if waiting else signal.SIGTERM
        if signum and not self._child.signal_group(signum):
            send(self._members.scan(), signum)

    def alive(self) -> tuple[int, ...]:
        """Return the pid of every process of the attempt that is still alive."""
        return tuple(sorted(process.pid for process in self._members.scan()))

    @property
    def exit_codes(self) -> Mapping[int, int]:
        """Return the exit code of each process that outlived its parent and has exited, by pid."""
        return self._members.exit_codes

    def cpu_seconds(self) -> float:
        """Return the CPU time that the processes of the attempt have used."""
        used_s = 0.0
        for process in self._members.scan():
            with suppress(psutil.Error):
                times = process.cpu_times()
                used_s += times.user + times.system
        return used_s

    def forget_exit(self) -> None:
        """Remove the exit code that was noted: the attempt has not ended with its direct child."""
        with suppress(OSError):
            self._exit_file.unlink()

    def stop(self, *, grace_s: float) -> StopReport:
        """Send SIGTERM to all, SIGKILL to those alive after `grace_s`, and reap.

        A second call during the first can only bring their shared deadline forward.
        """
        with self._deadline_lock:
            requested = time.monotonic() + grace_s
            self._deadline = min(requested, self._deadline or requested)
        with self._stopping:
            report = stop_all(self._members, lambda: self._deadline or time.monotonic())
            self._child.reaped.wait(0 if report.left else _REAP_S)
        return report

    def close(self) -> None:
        """Kill what is left, end the threads, remove the socket and the cgroup."""
        with self._closing:
            if self._closed:  # by now the descriptors may be reused
                return
            self._closed = True
            self.stop(grace_s=0)
            self._child.thread.join(_LINGER_S + _DRAIN_S)
            self._tee.close()
            self._resources.close()
            self._members.forget()

    def exited(self, returncode: int) -> None:
        """Emit all output and reports from before the attempt's exit, then the exit."""
        with suppress(OSError):  # a full disk; events.jsonl will have it
            self._exit_file.touch(mode=0o600)
            self._exit_file.write_text(str(returncode))
        self._tee.drain(linger_s=_LINGER_S, limit_s=_DRAIN_S)
        if self._reports is not None:
            self._reports.flush(_DRAIN_S)
        self._kernel.check()
        self._emit(ProcessExited(returncode=returncode))


class KernelWatch:
    """Emits every OOM kill that the kernel counts in a cgroup; `watched` if it has a counter."""

    def __init__(self, group: Cgroup | None, emit: Emit) -> None:
        self._group, self._emit = group, emit
        self._lock, self._closing = threading.Lock(), threading.Event()
        before = group.oom_kills() if group else None
        self.watched = before is not None
        self._before = self._last = before or 0
        self._thread = threading.Thread(target=self._watch, name="oomguard-kernel", daemon=True)
        if self.watched:
            self._thread.start()

    def check(self) -> None:
        """Read the counter now; the kernel increments it before the victim is gone."""
        if not self.watched or self._group is None:
            return
        with self._lock:
            now = self._group.oom_kills()
            if now is not None and now > self._last:
                fresh, self._last = now - self._last, now
                self._emit(Kernel(oom_kills=fresh, total=now - self._before))

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_KERNEL_CLOSE_S)

    def _watch(self) -> None:
        while not self._closing.wait(_KERNEL_POLL_S):
            self.check()
