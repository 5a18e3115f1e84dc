"""What the tests of `oomguard.process` share: attempts that are stopped again, and their events."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from oomguard.job.command import Command, File
from oomguard.machine.cgroups import name_for, own_cgroup
from oomguard.process.limits import Caps
from oomguard.process.messages import Output, ProcessExited, ShellEvent
from oomguard.process.start import start

PATIENCE_S = 30.0  # how long a test waits for what has to come; no test expects a duration
WAIT = "import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready');" + WAIT
Kind = TypeVar("Kind", Output, ProcessExited, ShellEvent)


def unique(name: str) -> str:
    """Make a mark that no other test run on this machine has."""
    return f"{name}-{os.getpid()}"


class Attempt:
    """One started attempt and the events seen of it so far."""

    def __init__(
        self, command: Command, *, log: Path, caps: Caps, monitored: bool, mark: str
    ) -> None:
        self.queue: queue.Queue[ShellEvent] = queue.Queue()
        self.seen: list[ShellEvent] = []
        self.log = log
        self.running = start(
            command, log=log, caps=caps, monitored=monitored, mark=mark, emit=self.queue.put
        )

    def next(self) -> ShellEvent:
        event = self.queue.get(timeout=PATIENCE_S)
        self.seen.append(event)
        return event

    def wait_for(self, kind: type[ShellEvent]) -> ShellEvent:
        while not isinstance(event := self.next(), kind):
            pass
        return event

    def wait_output(self, text: bytes) -> None:
        while text not in self.output:
            self.next()

    def exit(self) -> int:
        event = self.wait_for(ProcessExited)
        assert isinstance(event, ProcessExited)
        return event.returncode

    def of(self, kind: type[ShellEvent]) -> list[ShellEvent]:
        return [event for event in self.seen if isinstance(event, kind)]

    @property
    def output(self) -> bytes:
        return b"".join(event.data for event in self.seen if isinstance(event, Output))


class Attempts:
    """Starts attempts in a folder of their own, and closes them."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        self.folder, self._undo, self._number = folder, undo, 0

    def start(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        files: tuple[File, ...] = (),
        caps: Caps | None = None,
        monitored: bool = False,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> Attempt:
        self._number += 1
        attempt = Attempt(
            Command(argv=argv, cwd=str(cwd or self.folder), env=env or {}, files=files),
            log=log or self.folder / f"{self._number:03}" / "log.txt",
            caps=caps or Caps(),
            monitored=monitored,
            mark=unique(f"{self.folder.name}-{self._number}"),
        )
        self._undo.callback(attempt.running.close)
        return attempt

    def python(self, code: str, *arguments: str, **options: object) -> Attempt:
        return self.start(sys.executable, "-c", code, *arguments, **options)  # type: ignore[arg-type]


def make_attempts(tmp_path: Path) -> Iterator[Attempts]:
    with ExitStack() as undo:
        yield Attempts(tmp_path, undo)


def cgroup_can_be_made() -> bool:
    own = own_cgroup()
    try:
        if own is not None:
            own.make(name_for("probe")).remove()
    except OSError:
        return False
    return own is not None


needs_cgroup = pytest.mark.skipif(
    not cgroup_can_be_made(), reason="no memory cgroup may be made here (rights, or v2 delegation)"
)
