"""What the shell tells the supervisor about one attempt, in the order in which it was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oomguard.process.messages import AnyReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A chunk as the job printed it, stdout and stderr merged; it may end inside a character."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report of the monitor, and the line that it came in."""

    report: AnyReport
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel's OOM killer struck: kills since the last such event, and since the start."""

    oom_kills: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExited:
    """The direct child has ended and all that it printed or reported was emitted before.

    `returncode` is negative for a signal. Other processes of the attempt may still be there.
    """

    returncode: int


ShellEvent = Output | Report | Kernel | ProcessExited
Emit = Callable[[ShellEvent], None]
