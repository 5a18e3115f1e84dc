"""What an engine is: it places, starts, watches and stops attempts; the supervisor decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from oomguard.job.command import Command
from oomguard.machine.gpus import FreeReport
from oomguard.process.process_events import ShellEvent


class RunningAttempt(Protocol):
    """An attempt that was started; `cgroup` is the folder of its own, where it has one."""

    pid: int
    kernel_watched: bool
    cgroup: str | None

    @property
    def log_error(self) -> str | None:
        """Why the log ends early, None if it does not."""
        ...

    def signal(self, signum: int) -> None:
        """Send a signal to every process of the attempt."""
        ...

    def stop(self, *, grace_s: float) -> object:
        """Ask every process to end, and end what is left after the grace; returns when done."""
        ...

    def alive(self) -> tuple[int, ...]:
        """Return every process of the attempt that is still there."""
        ...

    def close(self) -> None:
        """Give back what the watching took."""
        ...


class Engine(Protocol):
    """A place where attempts run."""

    def start(
        self, command: Command, *, log: Path, mark: str, emit: Callable[[ShellEvent], None]
    ) -> RunningAttempt:
        """Start an attempt; `emit` is called from other threads with what happens to it."""
        ...

    def wait_until_free(self) -> FreeReport:
        """Wait until the memory that the attempt held is free again, or give up."""
        ...
