"""The direct child: started, waited for and reaped by one thread of its own."""

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
    """What to start, and what the shim is to do before; `cgroup` is a folder."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    cgroup: str | None
    data_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRefusal:
    """Why the command was not started: the shim's step, the errno if there was one, the text."""

    step: str
    errno: int | None
    text: str


class Child:
    """A process that is the leader of its own session, with no input and its output on one pipe.

    The thread that starts it also waits for it: the kernel's parent-death signal follows the
    thread and not the process, and may not come when some short-lived thread ends.

    Raises:
        OSError, ValueError: if not even the shim can be started (folder, arguments).
    """

    def __init__(self, spec: Spec, on_exit: Callable[[int], None]) -> None:
        self.refusal: LaunchRefusal | None = None
        self.returncode: int | None = None
        self._abandoned = False
        self.reaped = threading.Event()
        self._on_exit, self._lock, self._go = on_exit, threading.Lock(), threading.Event()
        self.output_fd, output_w = os.pipe()
        status_r, status_w = os.pipe()
        born: Future[subprocess.Popen[bytes]] = Future()
        self.thread = threading.Thread(
            target=self._live,
            args=(spec, output_w, status_w, born),
            name="oomguard-child",
            daemon=True,
        )
        self.started = time.time()
        self.thread.start()
        try:
            self._process = born.result()
            self.pid = self._process.pid
            self.row = self._identity()
            self.refusal = _refusal(status_r)
        except BaseException:
            self.abandon()
            raise
        finally:
            os.close(status_r)

    def release(self) -> None:
        """Let its end be told: everything that listens is in place."""
        self._go.set()

    def abandon(self) -> None:
        """Kill it, if it was born, and tell nobody."""
        self._abandoned = True
        self._go.set()
        self.thread.join()
        os.close(self.output_fd)

    def signal_group(self, number: int) -> bool:
        """Signal its process group; False if it was reaped, when the number may be another's."""
        with self._lock:
            if self.returncode is not None:
                return False
            with suppress(ProcessLookupError, PermissionError):  # macOS: all zombies
                os.killpg(self.pid, number)
            return True

    def _live(
        self, spec: Spec, output_w: int, status_w: int, born: Future[subprocess.Popen[bytes]]
    ) -> None:
        try:
            process = _popen(spec, output_w, status_w)
        except BaseException as error:  # noqa: BLE001  handed to who waits for it
            born.set_exception(error)
            return
        finally:
            os.close(output_w)
            os.close(status_w)
        born.set_result(process)
        self._go.wait()
        if self._abandoned:
            os.killpg(process.pid, signal.SIGKILL)
        if hasattr(os, "waitid"):  # without reaping: until then the pid stays this child's
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self.returncode = process.wait()
        self.reaped.set()
        if not self._abandoned:
            self._on_exit(self.returncode)

    def _identity(self) -> Row:
        """Describe it as the process table does; it cannot have been reaped yet."""
        return read_row(self.pid) or Row(
            pid=self.pid, ppid=os.getpid(), session=self.pid, start=self.started, zombie=False
        )


def _popen(spec: Spec, output_w: int, status_w: int) -> subprocess.Popen[bytes]:
    settings = {
        "status_fd": status_w,
        "parent": os.getpid(),
        "cgroup": spec.cgroup,
        "data_bytes": spec.data_bytes,
        # Python puts it into its own environment where the locale is C (PEP 538).
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
    """Wait for the exec, which closes the pipe, or for the shim's word that there is none."""
    said = b""
    while chunk := os.read(status_r, _STATUS_BYTES):
        said += chunk
    if not said:
        return None
    answer = json.loads(said)
    return LaunchRefusal(step=answer["step"], errno=answer["errno"], text=answer["text"])
