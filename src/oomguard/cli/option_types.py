"""Types of option values: reading one from the `oomguard:` block and from a flag."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click

from oomguard.configfile.values import real, truth, whole
from oomguard.errors import did_you_mean
from oomguard.units import parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType:
    """How values of one type are read. `read` raises ValueError for a wrong value in the block."""

    read: Callable[[object], object]
    flag_type: click.ParamType[Any]
    metavar: str | None = None


class Whole(click.IntRange):
    """A whole number within a range."""

    name = "whole number"


#: The value of `--gpus auto`: no number of GPUs, but the question how many are needed.
AUTO = 0


class GpuCount(Whole):
    """A number of GPUs, or `auto`."""

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a number or `auto`."""
        return AUTO if value == "auto" else int(super().convert(value, param, ctx))


class Seconds(click.FloatRange):
    """A duration in seconds."""

    name = "number of seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a number; fail with a usage error if no wait can be that long."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{seconds} is not a number of seconds.", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """A size such as 24GiB, in bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse a size; fail with a usage error if it is not one."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Text(click.ParamType[str]):
    """A name or a path: not empty, as an unset variable of a shell is, and on one line."""

    name = "text"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the text; fail with a usage error if it cannot be a name."""
        try:
            return _string(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


def _string(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a string, not {value!r}")
    if any(ord(character) < ord(" ") for character in value):
        raise ValueError(f"must have no control characters, not {value!r}")
    return value


def _arguments(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list) else []
    if not items or any(isinstance(w, bool) or not isinstance(w, str | int | float) for w in items):
        raise ValueError(f"must be a list of arguments such as [python, train.py], not {value!r}")
    return tuple(str(item) for item in items)


def _ids(value: object) -> str:
    return ",".join(_arguments(value)) if isinstance(value, list) else _string(value)


def _size(value: object) -> int:
    is_size = isinstance(value, str | int) and not isinstance(value, bool)
    return parse_size(str(value) if is_size else repr(value))


def _seconds(value: object) -> float:
    seconds = real(value)
    if seconds == 0:
        raise ValueError(f"must be more than 0 seconds, not {value!r}")
    return seconds


def one_of(*known: str) -> ValueType:
    """Return the type of a value that is one of some strings."""

    def read(value: object) -> str:
        if value not in known:
            guess = did_you_mean(str(value), known)
            raise ValueError(f"must be one of {', '.join(known)}, not {value!r}. {guess}".rstrip())
        return str(value)

    return ValueType(read=read, flag_type=click.Choice(known))


STRING = ValueType(read=_string, flag_type=Text())
NAME = replace(STRING, metavar="NAME")
PATH = replace(STRING, metavar="PATH")
FOLDER = replace(STRING, metavar="DIR")
ARGUMENTS = ValueType(read=_arguments, flag_type=click.STRING)
IDS = ValueType(read=_ids, flag_type=Text(), metavar="IDS")
SIZE = ValueType(read=_size, flag_type=Size())
COUNT = ValueType(read=whole, flag_type=Whole(min=1), metavar="N")
STEPS = replace(COUNT, metavar="STEPS")
SECONDS = ValueType(read=_seconds, flag_type=Seconds(min=0, min_open=True), metavar="SECONDS")
GRACE = replace(SECONDS, flag_type=Seconds(min=0))
SWITCH = ValueType(read=truth, flag_type=click.BOOL)
