"""The event log of a job: lines of JSON, each with a time of the machine's monotonic clock."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to a file that all processes of a run share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin(0)

    @classmethod
    def of_command(cls) -> EventLog:
        """Return the log that the flag `--event_log` names."""
        return cls(Path(sys.argv[sys.argv.index("--event_log") + 1]))

    def write(self, event: str, **figures: Any) -> None:
        """Append one event."""
        line = {"event": event, "at": round(time.monotonic(), 3), "process": os.getpid(), **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def begin(self, done: int) -> None:
        """Begin after this many samples, without what has been counted of a step that ran out."""
        self._done = done
        self._forget()

    def _forget(self) -> None:
        self._samples = self._width = self._tokens = 0
        self._loss = 0.0

    def count(self, *, samples: int, width: int, tokens: int, loss: float) -> None:
        """Add a batch to the optimizer step; its loss is its share of the loss of the step."""
        self._samples, self._tokens = self._samples + samples, self._tokens + tokens
        self._width, self._loss = max(self._width, width), self._loss + loss

    def step(self, event: str = "step") -> None:
        """Append an optimizer step; its `done` samples of the data have been trained on by now."""
        self._done += self._samples
        self.write(
            event, done=self._done, samples=self._samples, width=self._width, tokens=self._tokens,
            loss=self._loss,
        )  # fmt: skip
        self._forget()
