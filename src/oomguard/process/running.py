"""One attempt that was started: signalled, stopped, looked up and cleaned up after."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from oomguard.machine.cgroups import Cgroup
from oomguard.process.child import Child
from oomguard.process.members import Members, catches
from oomguard.process.messages import Emit, Kernel, ProcessExited
from oomguard.process.report_server import ReportServer
from oomguard.process.stop import StopReport, send, stop_all
from oomguard.process.tee import Tee

_LINGER_S = 0.5  # last words of processes that outlive the direct child
_DRAIN_S = 10.0  # an `emit` that blocks longer is not waited for
_REAP_S = 1.0


class Running:
    """The processes of an attempt. Every method may be called from any thread, and again.

    `pid` is the direct child, which leads the session; `started` is in seconds since the epoch;
    `kernel_watched` says whether a kill by the kernel's OOM killer would have been seen; `cgroup`
    is the folder of the attempt's own. The exit code is written to `exit_file` at once: this
    process may be killed before it could tell anybody.
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
        """Take over what `start` has made, and let the events of the end come."""
        self._child, self._tee, self._members = child, tee, members
        self._resources = resources
        self.pid, self.started = child.pid, child.started
        child.release()

    @property
    def log_error(self) -> str | None:
        """Why the log ends early, None if it does not."""
        return self._tee.log_error

    @property
    def refused_lines(self) -> int:
        """How many lines on the socket and in the buffer did not keep the inside protocol."""
        return self._reports.refused if self._reports else 0

    def signal(self, signum: int) -> None:
        """Send a signal to the whole process group, as Ctrl-C in a terminal would.

        SIGUSR1 ends who does not expect it: it goes to those alone that catch it, wherever the
        launchers have put them; where nobody does, SIGTERM says the same to all.
        """
        if signum == signal.SIGUSR1:
            waiting = [one for one in self._members.scan() if catches(one.pid, signum)]
            send(waiting, signum)
            signum = 0 if waiting else signal.SIGTERM
        if signum and not self._child.signal_group(signum):
            send(self._members.scan(), signum)

    def alive(self) -> tuple[int, ...]:
        """Return the pid of every process of the attempt that is still there."""
        return tuple(sorted(process.pid for process in self._members.scan()))

    def stop(self, *, grace_s: float) -> StopReport:
        """Send SIGTERM to all, SIGKILL to who is left when `grace_s` is over, and reap.

        A call while another one waits can only bring the shared deadline forward.
        """
        with self._deadline_lock:
            asked = time.monotonic() + grace_s
            self._deadline = asked if self._deadline is None else min(asked, self._deadline)
        with self._stopping:
            report = stop_all(self._members, self._until)
            self._child.reaped.wait(0 if report.left else _REAP_S)
        return report

    def close(self) -> None:
        """Kill what is left, end the threads, remove the socket and the cgroup."""
        with self._closing:
            if self._closed:  # the descriptors' numbers may be others' by now
                return
            self._closed = True
            self.stop(grace_s=0)
            self._child.thread.join(_LINGER_S + _DRAIN_S)
            self._tee.close()
            self._resources.close()
            self._members.forget()

    def exited(self, returncode: int) -> None:
        """Pass on all that was said before the direct child ended, then that it has ended."""
        with suppress(OSError):  # a full disk; the record will have it
            self._exit_file.touch(mode=0o600)
            self._exit_file.write_text(str(returncode))
        self._tee.drain(linger_s=_LINGER_S, limit_s=_DRAIN_S)
        if self._reports is not None:
            self._reports.settle(_DRAIN_S)
        self._kernel.check()
        self._emit(ProcessExited(returncode=returncode))

    def _until(self) -> float:
        return self._deadline if self._deadline is not None else time.monotonic()


_POLL_S = 0.2
_CLOSE_S = 1.0


class KernelWatch:
    """Emits each rise of the group's counter; `watched` says whether there is one to read."""

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
        """Look now; the kernel counts a kill before the victim is gone."""
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
            self._thread.join(_CLOSE_S)

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.check()
