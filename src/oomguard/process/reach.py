"""Starts a Python as an attempt would, to see whether the monitor reaches it."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from oomguard.job.command import Command
from oomguard.process.limits import Caps
from oomguard.process.messages import HelloReport, ProcessExited, Report, ShellEvent
from oomguard.process.start import start

PATIENCE_S = 120.0  # torch may come from a network disk


def monitor_reaches(python: str) -> bool:
    """Return whether the monitor reports that this Python has imported torch."""
    heard, ended = threading.Event(), threading.Event()

    def emit(event: ShellEvent) -> None:
        if isinstance(event, Report) and isinstance(event.report, HelloReport):
            heard.set()
        elif isinstance(event, ProcessExited):
            ended.set()

    with tempfile.TemporaryDirectory(prefix="oomguard-doctor-") as folder:
        running = start(
            Command(argv=(python, "-c", "import torch"), cwd=folder),
            log=Path(folder, "log.txt"),
            caps=Caps(),
            monitored=True,
            mark=f"doctor-{Path(folder).name}",
            emit=emit,
        )
        try:
            ended.wait(PATIENCE_S)
        finally:
            running.close()
    return heard.is_set()
