"""The errors that reach a user, each with the exit code that it ends with.

OomguardError                 4   our own fault, unless a subclass says otherwise
  UsageError                  2   what was asked cannot be done; nothing was started
    ConfigError                   a config file, one of its keys or a value
    FrameworkError                which framework, or a framework that is not installed
    StrategyError                 a strategy file, an id in --ladder
    RunFolderError                the run folder: in use, not writable, no room
    LogError                      a log that `explain` cannot read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What oomguard's own exit code says."""

    TRAINED = 0
    JOB_FAILED = 1  # for another reason than memory; its own code is in the report
    USAGE = 2
    EXHAUSTED = 3  # no rung of the ladder is left
    OWN_FAULT = 4
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A place that a user can open: a file, a line (from 1) in it, a key on that line."""

    file: str | None = None
    line: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = self.file or "command line"
        if self.line is not None:
            place += f":{self.line}"
        return f"{place}, key {self.key!r}" if self.key else place


class OomguardError(Exception):
    """What went wrong, where, and what to do next."""

    exit_code: ClassVar[ExitCode] = ExitCode.OWN_FAULT

    def __init__(self, what: str, *, where: Where | None = None, next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.next_step = what, where, next_step

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  {self.next_step}" if self.next_step else "")


class UsageError(OomguardError):
    """What was asked cannot be done; nothing was started."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A config file that is missing or wrong, one of its keys, or a value."""


class FrameworkError(UsageError):
    """No framework, several frameworks, or one that is not installed."""


class StrategyError(UsageError):
    """A strategy file that cannot be used, or an id that no strategy has."""


class RunFolderError(UsageError):
    """A run folder in use or not writable, or no room for it on the disk."""


class LogError(UsageError):
    """A log file that cannot be read."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the nearest known word as a question, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
