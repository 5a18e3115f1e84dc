"""`Flags`: settings as command-line arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import yaml

from oomguard.errors import Where

_NUMBER = re.compile(r"-\d*\.?\d+(e-?\d+)?", re.IGNORECASE)


class Style(Enum):
    """How a framework reads its settings from a command line."""

    ARGPARSE = "--key value"  # a key without a value is True; null cannot be written
    JSONARGPARSE = "--a.key value"  # the same, and values are YAML
    OMEGACONF = "key=value"  # values are YAML


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """One place where a key is set: arguments `start` to `stop`; `value` None if none follows."""

    start: int
    stop: int
    value: str | None
    joined: bool = False
    negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Arguments of a command line; of a key that is set twice, the last wins."""

    args: tuple[str, ...] = ()
    style: Style = Style.ARGPARSE

    def has(self, key: str) -> bool:
        """Return whether some word sets this key."""
        return any(True for _ in self._uses(key))

    def get(self, key: str) -> object:
        """Return the value of a key: text for argparse, else what YAML reads; None if not set."""
        use = self._last(key)
        if use is None:
            return None
        if use.negated or use.value is None:
            return not use.negated
        return use.value if self.style is Style.ARGPARSE else _from_yaml(use.value)

    def words(self, key: str) -> tuple[str, ...]:
        """Return all words of a key's value: argparse lists take every one up to the next flag."""
        use = self._last(key)
        if use is None or use.value is None:
            return ()
        if self.style is not Style.ARGPARSE:
            value = self.get(key)
            items = value if isinstance(value, list) else [] if value is None else [value]
            return tuple(str(item) for item in items)
        if use.joined:
            return (use.value,)
        after = range(use.stop, len(self.args))
        stop = next((index for index in after if is_flag(self.args[index])), len(self.args))
        return self.args[use.start + 1 : stop]

    def names(self) -> tuple[str, ...]:
        """Return the keys that are set, as their framework spells them; `no_key` as such."""
        words = (word.partition("=") for word in self.args)
        if self.style is Style.OMEGACONF:
            return tuple(name.lstrip("+~") for name, equals, _ in words if equals)
        flags = (name for name, _, _ in words if name.startswith("--") and name != "--")
        return tuple(name[2:].replace("-", "_") for name in flags)

    def where(self, key: str) -> Where:
        """Return where a key is set: on the command line."""
        return Where(key=key if self.style is Style.OMEGACONF else f"--{key}")

    def set(self, key: str, value: object) -> Flags:
        """Write one value over the use that wins, or add it at the end; other arguments stay."""
        if value is None and self.style is Style.ARGPARSE:
            return self.delete(key)
        if value is None:
            shown = "null"
        elif isinstance(value, bool) and self.style is not Style.ARGPARSE:
            shown = str(value).lower()
        else:
            shown = str(value)
        name = key if self.style is Style.OMEGACONF else f"--{key}"
        use = self._last(key)
        joined = self.style is Style.OMEGACONF or (use is not None and use.joined)
        new = (f"{name}={shown}",) if joined else (name, shown)
        if use is None:
            return replace(self, args=self.args + new)
        return replace(self, args=self.args[: use.start] + new + self.args[use.stop :])

    def delete(self, key: str) -> Flags:
        """Remove a key, wherever it is set."""
        args = self.args
        for use in reversed(list(self._uses(key))):
            args = args[: use.start] + args[use.stop :]
        return replace(self, args=args)

    def _last(self, key: str) -> _Use | None:
        return next(iter(reversed(list(self._uses(key)))), None)

    def _uses(self, key: str) -> Iterator[_Use]:
        for start, word in enumerate(self.args):
            name, equals, value = word.partition("=")
            if self.style is Style.OMEGACONF:
                if equals and name == key:
                    yield _Use(start=start, stop=start + 1, value=value, joined=True)
            elif name.startswith("--"):
                use = self._flag(start, name[2:].replace("-", "_"), key)
                if use and equals:
                    yield replace(use, stop=start + 1, value=value, joined=True)
                elif use:
                    yield use

    def _flag(self, start: int, name: str, key: str) -> _Use | None:
        if name == f"no_{key}":
            return _Use(start=start, stop=start + 1, value=None, negated=True)
        if name != key:
            return None
        following = self.args[start + 1 : start + 2]
        if following and not is_flag(following[0]):
            return _Use(start=start, stop=start + 2, value=following[0])
        return _Use(start=start, stop=start + 1, value=None)


def is_flag(word: str) -> bool:
    """Return whether argparse would take a word for an option rather than for a value."""
    return word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word)


def _from_yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
