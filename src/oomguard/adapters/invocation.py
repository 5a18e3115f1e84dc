"""The command line of a training script: flags, a JSON as its only word, or a YAML as flags.

Flags of a file's own `command:` beat the file, as flags on a command line do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from oomguard.adapters import launchers
from oomguard.adapters.launchers import LauncherCommand
from oomguard.configfile.document import Document, Source
from oomguard.configfile.flags import Flags, is_flag
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The command line of a script taken apart: its launcher, its own words, its config."""

    launch: LauncherCommand
    words: tuple[str, ...]
    source: Source | None
    is_json: bool = False

    @property
    def settings(self) -> Settings:
        """Lay flags and config over each other as the program does."""
        words = Flags(words=self.words)
        if self.source is None:
            return Settings(late=words)
        if self.is_json:
            return Settings(file=self.source.document)
        return Settings(late=words, file=self.source.document)

    @property
    def config(self) -> str | None:
        """Return the word that names the config, None where its settings become flags."""
        return args_file(self.launch) if self.is_json else None

    def argv(
        self, head: tuple[str, ...], settings: Settings, config: str | None
    ) -> tuple[str, ...]:
        """Write the command for edited settings; `config` is the word that names the file."""
        if settings.file is None:
            return (*head, *settings.late.words)
        if self.is_json:
            return (*head, *((config,) if config else ()))
        at = _first_flag(settings.late.words)
        before, after = settings.late.words[:at], settings.late.words[at:]
        return (*head, *before, *flags_of(settings.file), *after)


def with_config(command: tuple[str, ...], *config: str) -> tuple[str, ...]:
    """Put the words that name a config before the flags of a command, which then beat it."""
    launch = launchers.parse(command)
    start = len(launch.head) if launch else 1
    at = start + _first_flag(command[start:])
    return (*command[:at], *config, *command[at:])


def _first_flag(words: tuple[str, ...]) -> int:
    """Count the words before the first `--key` or `key=value`: positionals and subcommands."""
    return next((at for at, word in enumerate(words) if is_flag(word) or "=" in word), len(words))


def flags_of(document: Document) -> tuple[str, ...]:
    """Turn a flat config into the flags of a script: `--key value`, null left out.

    Raises:
        ConfigError: for a list of lists or of mappings.
    """
    words: list[str] = []
    for key, value in document.values.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in values) and isinstance(value, list):
            raise ConfigError(
                f"{key} is no list of plain values, it cannot become words of a command line",
                where=document.where(key),
            )
        if value is not None:
            words += [f"--{key}", *(_as_word(item) for item in values)]
    return tuple(words)


def _as_word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFirst(Invocation):
    """A config as the first word; the words after it beat it."""

    @property
    def settings(self) -> Settings:
        """Lay the words over the file."""
        file = self.source.document if self.source else None
        return Settings(late=Flags(words=self.words[1:] if file else self.words), file=file)

    @property
    def config(self) -> str | None:
        """Return the first word, if it is a file."""
        first = self.words[0] if self.words else ""
        return first if first.endswith((".yaml", ".yml", ".json")) else None

    def argv(
        self, head: tuple[str, ...], settings: Settings, config: str | None
    ) -> tuple[str, ...]:
        """Write the command for edited settings."""
        return (*head, *((config,) if config else ()), *settings.late.words)


def split(argv: tuple[str, ...], source: Source | None) -> Invocation:
    """Take the command line of a Python program apart.

    Raises:
        ConfigError: if it starts none in a way known here.
    """
    launch = launchers.parse(argv)
    if launch is None:
        raise ConfigError(
            "starts no Python script in a way known here",
            where=Where(key=" ".join(argv[:2])),
            next_step="Write python, torchrun, accelerate launch or deepspeed, then the script.",
        )
    if source is None or args_file(launch):
        return Invocation(
            launch=launch,
            words=() if source else launch.words,
            source=source,
            is_json=source is not None,
        )
    flags, at = flags_of(source.document), _first_flag(launch.words)
    rest = launch.words[at:]
    is_derived = bool(flags) and rest[: len(flags)] == flags
    after = rest[len(flags) :] if is_derived else rest
    return Invocation(launch=launch, words=(*launch.words[:at], *after), source=source)


def args_file(launch: LauncherCommand) -> str | None:
    """Return the `.json` that is a script's only word."""
    only = launch.words[0] if len(launch.words) == 1 else ""
    return only if only.endswith(".json") else None
