"""Readers of single values: from YAML, or as text from a command line. All raise ValueError."""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[+-]?\d+")
_TRUE = {"yes", "true", "t", "y", "1"}  # as argparse and HfArgumentParser read them
_FALSE = {"no", "false", "f", "n", "0"}


def whole(value: object, *, least: int | None = 1) -> int:
    """Read an integer of at least 1, or of at least `least`."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not _WHOLE.fullmatch(text) or (least is not None and int(text) < least):
        limit = "" if least is None else f" of at least {least}"
        raise ValueError(f"must be an integer{limit}, not {shown(value)}")
    return int(text)


def natural(value: object) -> int:
    """Read an integer of at least 0."""
    return whole(value, least=0)


def integer(value: object) -> int:
    """Read an integer, which may be negative."""
    return whole(value, least=None)


def real(value: object) -> float:
    """Read a number of at least 0; YAML 1.1 leaves `1e-4` a text."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value)  # its own ValueError names what it could not read
        if number >= 0 and math.isfinite(number):
            return number
    raise ValueError(f"must be a number of at least 0, not {shown(value)}")


def truth(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool | str) or str(value).lower() not in _TRUE | _FALSE:
        raise ValueError(f"must be true or false, not {shown(value)}")
    return is_true(value)


def is_true(value: object) -> bool:
    """Return whether a value is one of those that mean true; 1 counts too."""
    return str(value).lower() in _TRUE


def word(value: object) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {shown(value)}")  # noqa: TRY004  as all readers
    return value


def anything(value: object) -> object:
    """Return a value as it is."""
    return value


def shown(value: object) -> str:
    """Show a value as a config has it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return repr(value.value if hasattr(value, "value") else value)
