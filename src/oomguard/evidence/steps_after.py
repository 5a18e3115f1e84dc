"""Finds training steps after an OOM: they show that the job caught it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from oomguard.evidence.log_lines import Line
from oomguard.evidence.message import PROGRESS_AFTER, progress
from oomguard.evidence.progress import bar_total, is_loss, step_of
from oomguard.evidence.verdict import Finding

_STEPS_THAT_SHOW_PROGRESS = 3
_WATCHED_LINES = 10_000


@dataclass(slots=True)
class StepsAfter:
    """Counts the steps of a rank on the lines below its OOM."""

    rank: int | None
    steps: set[int] = field(default_factory=set)
    lines: int = 0
    total: int | None = None  # of the bar on the line above
    over: bool = False

    def add(self, line: Line, number: int, totals: deque[int]) -> Finding | None:
        """Read one more line; return the finding once enough steps were taken.

        A bar beside which a loss is printed is one of training: where it runs to joins `totals`.
        """
        self.lines += 1
        if self.total is not None and self.total not in totals and is_loss(line.text):
            totals.append(self.total)
        self.total = bar_total(line.text)
        step = step_of(line.text, totals)
        if step is not None and line.rank == self.rank:
            self.steps.add(step)
        shown = len(self.steps) >= _STEPS_THAT_SHOW_PROGRESS
        self.over = shown or self.lines > _WATCHED_LINES
        return progress(PROGRESS_AFTER, line, step, number, handled=True) if shown else None
