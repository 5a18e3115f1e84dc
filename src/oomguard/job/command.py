"""`Command`: what the shell writes and starts for one attempt, as data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from oomguard.redact import Known, found_in, redact_argv, redact_env


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A text file to write before the start; `path` is absolute."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How one attempt is started: no shell, `env` on top of the environment oomguard has.

    `files` are written first, in order. `config` is the one of them, or the user's own file,
    that a person would pass to the framework manually.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    config: str | None = None

    def wrapped(self, wrapper: tuple[str, ...]) -> Command:
        """Return it with a wrapper before it."""
        return replace(self, argv=(*wrapper, *self.argv))

    def secrets(self) -> Known:
        """Return the secrets in its words, its variables and its files."""
        return found_in(argv=self.argv, env=self.env, texts=[file.text for file in self.files])

    def masked(self) -> Command:
        """Return it as it may be shown: secrets masked, no files."""
        return replace(self, argv=redact_argv(self.argv), env=redact_env(self.env), files=())

    def by_hand(self) -> str:
        """Write the command as one would type it in a POSIX shell, environment included."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.env.items())]
        words.append(shlex.join(self.argv))
        return f"cd {shlex.quote(self.cwd)} && {' '.join(words)}"
