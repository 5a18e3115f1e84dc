"""Errors that are shown to the user, with their exit codes.

OomguardError                 4   internal error, unless a subclass overrides it
  UsageError                  2   the request cannot be carried out; nothing was started
    ConfigError                   a config file, a key or a value in it
    FrameworkError                unknown or ambiguous framework, or not installed
    StrategyError                 a strategy file, an id in --ladder
    RunFolderError                the run folder: in use, not writable, disk full
    LogError                      a log that `explain` cannot read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """oomguard's exit codes."""

    TRAINED = 0
    JOB_FAILED = 1  # for a non-memory reason; its own exit code is in the report
    USAGE = 2
    EXHAUSTED = 3  # all strategies exhausted
    OWN_FAULT = 4
    DOES_NOT_FIT = 5  # plan --ci
    NOT_CERTAIN = 6  # plan --ci: it may fit, or what it needs is not known
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The place of an error: a file, a line (from 1), a key on that line."""

    file: str | None = None
    line: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = self.file or "command line"
        if self.line is not None:
            place += f":{self.line}"
        return f"{place}, key {self.key!r}" if self.key else place


class OomguardError(Exception):
    """An error with its place and what to do next."""

    exit_code: ClassVar[ExitCode] = ExitCode.OWN_FAULT

    def __init__(self, what: str, *, where: Where | None = None, next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.next_step = what, where, next_step

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  {self.next_step}" if self.next_step else "")


class UsageError(OomguardError):
    """The request cannot be carried out; nothing was started."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A missing or invalid config file, key or value."""


class FrameworkError(UsageError):
    """An unknown or ambiguous framework, or one that is not installed."""


class StrategyError(UsageError):
    """An invalid strategy file, or an unknown strategy id."""


class RunFolderError(UsageError):
    """A run folder that is in use or not writable, or a full disk."""


class LogError(UsageError):
    """A log file that cannot be read."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" with the closest match, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
