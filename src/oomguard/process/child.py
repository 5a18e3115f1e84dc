"""The direct child: one thread starts it, waits for it and reaps it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from oomguard.process.members import Row, read_row

_SHIM = Path(__file__).with_name("shim.py")
_STATUS_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to start, and what the shim sets up first; `cgroup` is a folder."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    cgroup: str | None
    data_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRefusal:
    """Why the command was not started: the step of the shim, errno if any, and the message."""

    step: str
    errno: int | None
    text: str


class Child:
    """A process that leads its own session, with no input and with its output on one pipe.

    The thread that starts it also waits for it: the kernel sends the parent-death signal when that
    thread ends, so it must live as long as the child.

    Raises:
        OSError, ValueError: if the shim itself cannot be started (directory, arguments).
    """

    def __init__(self, spec: Spec, on_exit: Callable[[int], None]) -> None:
        self.refusal: LaunchRefusal | None = None
        self.returncode: int | None = None
        self._abandoned = False
        self.reaped = threading.Event()
        self._on_exit, self._lock, self._go = on_exit, threading.Lock(), threading.Event()
        self.output_fd, output_w = os.pipe()
        status_r, status_w = os.pipe()
        spawned: Future[subprocess.Popen[bytes]] = Future()
        self.thread = threading.Thread(
            target=self._live,
            args=(spec, output_w, status_w, spawned),
            name="oomguard-child",
            daemon=True,
        )
        self.started = time.time()
        self.thread.start()
        try:
            self._process = spawned.result()
            self.pid = self._process.pid
            # It cannot have been reaped yet; without /proc the table has no such row.
            self.row = read_row(self.pid) or Row(
                pid=self.pid, ppid=os.getpid(), session=self.pid, start=self.started, zombie=False
            )
            self.refusal = _refusal(status_r)
        except BaseException:
            self.abandon()
            raise
        finally:
            os.close(status_r)

    def release(self) -> None:
        """Allow its exit to be reported, once every listener is in place."""
        self._go.set()

    def abandon(self) -> None:
        """Kill it, if it was started, without reporting its exit."""
        self._abandoned = True
        self._go.set()
        self.thread.join()
        os.close(self.output_fd)

    def signal_group(self, number: int) -> bool:
        """Signal its process group; return False if it was reaped, as its pid may be reused."""
        with self._lock:
            if self.returncode is not None:
                return False
            with suppress(ProcessLookupError, PermissionError):  # macOS: all zombies
                os.killpg(self.pid, number)
            return True

    def _live(
        self, spec: Spec, output_w: int, status_w: int, spawned: Future[subprocess.Popen[bytes]]
    ) -> None:
        try:
            process = _popen(spec, output_w, status_w)
        except BaseException as error:  # noqa: BLE001  raised in the thread that waits for it
            spawned.set_exception(error)
            return
        finally:
            os.close(output_w)
            os.close(status_w)
        spawned.set_result(process)
        self._go.wait()
        if self._abandoned:
            os.killpg(process.pid, signal.SIGKILL)
        if hasattr(os, "waitid"):  # without reaping: the pid stays this child's until then
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self.returncode = process.wait()
        self.reaped.set()
        if not self._abandoned:
            self._on_exit(self.returncode)


def _popen(spec: Spec, output_w: int, status_w: int) -> subprocess.Popen[bytes]:
    settings = {
        "status_fd": status_w,
        "parent": os.getpid(),
        "cgroup": spec.cgroup,
        "data_bytes": spec.data_bytes,
        # Python adds it to its own environment in a C locale (PEP 538).
        "unset": [] if "LC_CTYPE" in spec.env else ["LC_CTYPE"],
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", os.fspath(_SHIM), json.dumps(settings), *spec.argv],
        cwd=spec.cwd,
        env=spec.env,
        stdin=subprocess.DEVNULL,
        stdout=output_w,
        stderr=output_w,
        pass_fds=(status_w,),
        start_new_session=True,
    )


def _refusal(status_r: int) -> LaunchRefusal | None:
    """Wait for the exec, which closes the pipe, or for the shim's error message."""
    received = b""
    while chunk := os.read(status_r, _STATUS_BYTES):
        received += chunk
    if not received:
        return None
    answer = json.loads(received)
    return LaunchRefusal(step=answer["step"], errno=answer["errno"], text=answer["text"])
