"""Stop the processes of a run whose oomguard was killed.

Run by path as `python -I -S watchdog.py MARK CGROUP GRACE_S`, standard library only. A byte on
standard input means that the run has ended, EOF without one that oomguard is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_KILL_S, _PAUSE_S = 10.0, 0.05


class Guard:
    """Stops the processes of a run when oomguard dies, however that happens.

    They are those with `mark`, a `NAME=prefix`, in their environment, and those in a cgroup with
    `cgroup` in its path. Without /proc it finds none. They get `grace_s` seconds, as one may be
    writing a checkpoint.
    """

    def __init__(self, *, mark: str, cgroup: str, grace_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark, cgroup, str(grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """End the watchdog: the run and its processes have ended."""
        with contextlib.suppress(OSError):  # it was killed
            self._process.communicate(b"\n")
        self._process.wait()


def main(mark: str, cgroup: str, grace: str) -> None:
    """Wait until oomguard is gone; send SIGTERM to what is left, SIGKILL after the grace."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Its own group, so that killing oomguard's does not reach it, but the same session: in another
    # one it would be taken for a daemon of the job.
    os.setpgid(0, 0)
    if os.read(0, 1):
        return
    began, grace_s = time.monotonic(), float(grace)
    asked: set[int] = set()
    while left := set(_left(os.fsencode(mark), os.fsencode(cgroup))):
        waited_s = time.monotonic() - began
        if waited_s < grace_s:
            _send(left - asked, signal.SIGTERM)
            asked |= left
        elif waited_s < grace_s + _KILL_S:
            _send(left, signal.SIGKILL)
        else:
            break
        time.sleep(_PAUSE_S)


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _left(mark: bytes, cgroup: bytes) -> Iterator[int]:
    for folder in _PROC.iterdir() if _PROC.is_dir() else ():
        if folder.name.isdigit() and _is_alive(folder):
            marked = any(entry.startswith(mark) for entry in _read(folder / "environ").split(b"\0"))
            if marked or cgroup in _read(folder / "cgroup"):
                yield int(folder.name)


def _is_alive(folder: Path) -> bool:
    return _read(folder / "stat").rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"], [])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main(*sys.argv[1:])
