"""Checkpoints that are quantized already, by their names."""

from __future__ import annotations

import re

_QUANTIZED = re.compile(
    r"(?i)[-_](awq|gptq|hqq|aqlm|fp8|mxfp4|nvfp4|int[48]|bnb[-_]4bit|[48]bit)(?=[-_/]|$)"
)
_FOUR_BIT = re.compile(r"(?i)[-_](awq|gptq)(?=[-_/]|$)")
#: Widths behind that word, as in GPTQ-Int8, and anywhere.
_OTHER_WIDTH = re.compile(r"(?i)[-_](int|w|q)?[2368](bit|a16)?(?=[-_/]|$)")
_EIGHT = re.compile(r"(?i)(int8|8[-_]?bit|w8a)")


def is_four_bit(model: object) -> bool:
    """Return whether a name is that of an AWQ or GPTQ checkpoint of 4 bits, as nearly all are."""
    name = str(model or "")
    tail = name[match.start() :] if (match := _FOUR_BIT.search(name)) else ""
    return bool(tail) and not (_OTHER_WIDTH.search(tail) or _EIGHT.search(name))


def is_of_unknown_width(model: object) -> bool:
    """Return whether a name is that of a quantized checkpoint whose size it does not settle."""
    name = str(model or "")
    return _QUANTIZED.search(name) is not None and not is_four_bit(name)
