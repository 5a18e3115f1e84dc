"""A parsed training command: its launcher, its config file, its flags.

Flags of a file's own `command:` beat the file, as flags on a command line do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from oomguard.adapters import launchers
from oomguard.adapters.launchers import LauncherCommand
from oomguard.configfile.document import Document, Source
from oomguard.configfile.flags import Flags, Style, is_flag
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError

CONFIG = "config"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


class Form(Enum):
    """How a command passes its config."""

    FIRST = "FILE --key value"
    OPTION = "--config FILE --key value"
    ALONE = "FILE"  # the JSON that is a script's only argument
    FLAGS = "--key value"  # the keys of the file become flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One command line: `head` ends where the settings begin, `tail` follows them.

    `launch` is the launcher that starts the ranks, None if the framework starts them itself.
    `config` is the config file as written in the command.
    """

    head: tuple[str, ...]
    settings: Settings
    form: Form = Form.FIRST
    config: str | None = None
    launch: LauncherCommand | None = None
    tail: tuple[str, ...] = ()

    def argv(self, config: str | None = None) -> tuple[str, ...]:
        """Return the command line for the settings; `config` replaces the file's name."""
        name, early, late = config or self.config, self.settings.early, self.settings.late
        if self.form is Form.ALONE:
            return (*self.head, *((name,) if name else ()))
        if self.form is Form.FLAGS and self.settings.file is not None:
            at = _first_flag(late.args)
            flags = flags_of(self.settings.file)
            return (*self.head, *late.args[:at], *flags, *late.args[at:])
        before = (name,) if self.form is Form.FIRST and name else ()
        args = (*early.args, *late.args)
        if self.form is Form.OPTION and name:
            # In argparse's style whatever the style of the settings: `--config FILE key=value`.
            layers = [Flags(args=early.args), Flags(args=late.args)]
            at = 0 if layers[0].has(CONFIG) else 1
            layers[at] = layers[at].set(CONFIG, name)
            args = (*layers[0].args, *layers[1].args)
        return (*self.head, *before, *args, *self.tail)


def file_first(
    head: tuple[str, ...],
    args: tuple[str, ...],
    source: Source | None,
    *,
    style: Style = Style.ARGPARSE,
    launch: LauncherCommand | None = None,
    tail: tuple[str, ...] = (),
) -> Invocation:
    """Parse a command whose config is the first argument; flags after it override it."""
    is_file = bool(args) and args[0].endswith(CONFIG_SUFFIXES)
    late = Flags(args=args[1:] if is_file else args, style=style)
    return Invocation(
        head=head,
        settings=Settings(late=late, file=source.document if source else None),
        config=args[0] if is_file else None,
        launch=launch,
        tail=tail,
    )


def file_option(
    head: tuple[str, ...],
    args: tuple[str, ...],
    source: Source | None,
    *,
    style: Style = Style.ARGPARSE,
    launch: LauncherCommand | None = None,
) -> Invocation:
    """Parse a command whose config follows `--config`; the other flags override it."""
    name = Flags(args=args).get(CONFIG)
    return Invocation(
        head=head,
        settings=Settings(
            late=Flags(args=args, style=style), file=source.document if source else None
        ),
        form=Form.OPTION,
        config=name if isinstance(name, str) else None,
        launch=launch,
    )


def script(argv: tuple[str, ...], source: Source | None) -> Invocation | None:
    """Parse the command of a Python script: flags, a JSON alone, or a file as flags.

    None if it starts no Python program in a known way.
    """
    launch = launchers.parse(argv)
    if launch is None:
        return None
    only = launch.args[0] if len(launch.args) == 1 else ""
    if only.endswith(".json"):
        settings = Settings(file=source.document) if source else Settings()
        return Invocation(
            head=launch.head, settings=settings, form=Form.ALONE, config=only, launch=launch
        )
    args = launch.args
    if source is not None:
        flags, at = flags_of(source.document), _first_flag(args)
        if flags and args[at : at + len(flags)] == flags:  # they come from the file
            args = (*args[:at], *args[at + len(flags) :])
    settings = Settings(late=Flags(args=args), file=None if source is None else source.document)
    return Invocation(head=launch.head, settings=settings, form=Form.FLAGS, launch=launch)


def with_config(command: tuple[str, ...], *config: str) -> tuple[str, ...]:
    """Insert the arguments that name a config before a command's flags, which then override it."""
    launch = launchers.parse(command)
    start = len(launch.head) if launch else 1
    at = start + _first_flag(command[start:])
    return (*command[:at], *config, *command[at:])


def flags_of(document: Document) -> tuple[str, ...]:
    """Turn a flat config into the flags of a script: `--key value`, null left out.

    Raises:
        ConfigError: for a list of lists or of mappings.
    """
    args: list[str] = []
    for key, value in document.values.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in values) and isinstance(value, list):
            raise ConfigError(
                f"{key} is not a list of plain values, so it cannot become command-line flags",
                where=document.where(key),
            )
        if value is not None:
            shown = [json.dumps(one) if isinstance(one, dict) else str(one) for one in values]
            args += [f"--{key}", *shown]
    return tuple(args)


def _first_flag(args: tuple[str, ...]) -> int:
    """Count the arguments before the first `--key` or `key=value`: positionals and subcommands."""
    return next((at for at, word in enumerate(args) if is_flag(word) or "=" in word), len(args))
