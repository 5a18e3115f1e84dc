"""Run attempts on this machine: what the supervisor starts them with."""

from __future__ import annotations

from pathlib import Path

from oomguard.job.command import Command
from oomguard.machine.gpus import FreeReport, Gpu, gpus, wait_until_free
from oomguard.process.limits import Caps
from oomguard.process.process_events import Emit
from oomguard.process.running import Running
from oomguard.process.start import start


class LocalEngine:
    """Starts attempts as process groups, and remembers how free each GPU was before the first."""

    def __init__(self, *, caps: Caps, inside: bool) -> None:
        self._caps, self._inside = caps, inside
        self._before: tuple[Gpu, ...] = gpus()

    def start(self, command: Command, *, log: Path, mark: str, emit: Emit) -> Running:
        """Start an attempt; `emit` is called from other threads with what happens to it."""
        return start(command, log=log, caps=self._caps, inside=self._inside, mark=mark, emit=emit)

    def wait_until_free(self) -> FreeReport:
        """Wait until each GPU is as free as it was before the first attempt."""
        return wait_until_free(self._before)
