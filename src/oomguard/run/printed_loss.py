"""The first and the last loss that a job prints. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Of a longer line the beginning is not read.
LINE_BYTES = 1 << 16
#: The loss as the Trainer and its kin print it, with its step or else its epoch; and LitGPT.
_LOSS = re.compile(
    r"\{'loss': '?(?P<loss>[\d.eE+-]+)'?(?=[^{}\n]*'(?P<unit>step|epoch)': '?(?P<at>[\d.eE+-]+))"
    r"|\bstep (?P<step>\d+) \| loss train: (?P<litgpt>[\d.]+)"
)
_LINE_END = re.compile(rb"[\r\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEnds:
    """The first and the last loss of an attempt, with the `unit` (step or epoch) of where it was.

    `last` is None where only the first is known: the monitor measured it.
    """

    unit: str
    first_at: float
    first: float
    last_at: float | None = None
    last: float | None = None


class LossReader:
    """Reads losses from a log that comes in chunks."""

    def __init__(self) -> None:
        self.ends: LossEnds | None = None
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        """Read one more chunk."""
        *lines, self._waiting = _LINE_END.split(self._waiting + data)
        self._waiting = self._waiting[-LINE_BYTES:]
        for line in lines:
            self._read(line)

    def close(self) -> LossEnds | None:
        """Read the last line; return what was found."""
        self._read(self._waiting)
        self._waiting = b""
        return self.ends

    def _read(self, line: bytes) -> None:
        if b"loss" not in line:
            return
        for unit, at, loss in losses_in(line[-LINE_BYTES:].decode("utf-8", "replace")):
            ends = self.ends or LossEnds(unit=unit, first_at=at, first=loss)
            if unit == ends.unit:
                self.ends = LossEnds(
                    unit=unit, first_at=ends.first_at, first=ends.first, last_at=at, last=loss
                )


def losses_in(text: str) -> Iterator[tuple[str, float, float]]:
    """Yield each loss that a log prints, behind its unit (step or epoch) and where it was there."""
    for found in _LOSS.finditer(text):
        unit, at, loss = found["unit"], found["at"], found["loss"]
        if unit is None:
            unit, at, loss = "step", found["step"], found["litgpt"]
        try:
            yield unit, float(at), float(loss)
        except ValueError:
            continue
