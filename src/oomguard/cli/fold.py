"""Shorten tracebacks that were printed before, while the job's output streams to a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HEADER = b"Traceback (most recent call last):"
#: What torchrun puts before the lines of a rank.
_RANK = re.compile(rb"\[rank\d+\]: ?")
_RANKS = re.compile(rb"\[(r(a(n(k(\d*(\](: ?)?)?)?)?)?)?)?\Z")
_NUMBERS = re.compile(rb"\d+")
#: Shorter ones are printed as they are.
_LEAST_LINES = 6
#: A traceback with more lines is passed on as it is.
_MOST_LINES = 2000


@dataclass(slots=True)
class TracebackFold:
    """Passes output on, of a traceback that came before only the first and the last line.

    Tracebacks are the same if they differ in numbers alone, or in the rank that prints them. Only
    the lines of a traceback are held back, until its last one.
    """

    _seen: set[bytes] = field(default_factory=set)
    _block: list[bytes] = field(default_factory=list)
    _rest: bytes = b""  # a line without its end, held back
    _begun: bool = False  # the beginning of the line was passed on

    def feed(self, data: bytes) -> bytes:
        """Return what of the output is to be printed after these bytes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = b""
        out = b"".join(self._line(line + b"\n") for line in lines)
        if self._block or (not self._begun and _may_be_header(rest)):
            self._rest = rest
            return out
        self._begun = self._begun or bool(rest)
        return out + rest

    def close(self) -> bytes:
        """Return what was held back, as it is."""
        out = b"".join(self._block) + self._rest
        self._block, self._rest, self._begun = [], b"", False
        return out

    def _line(self, line: bytes) -> bytes:
        """Return what to print once a line is there."""
        begun, self._begun = self._begun, False
        if begun:
            return line
        prefix, text = _parted(line)
        if text.rstrip() == _HEADER:
            out = b"".join(self._block)  # of one that has no end
            self._block = [line]
            return out
        if not self._block:
            return line
        self._block.append(line)
        is_inside = text[:1] in (b" ", b"\t") and len(self._block) < _MOST_LINES
        if is_inside and prefix == _parted(self._block[0])[0]:
            return b""
        block, self._block = self._block, []
        return self._folded(block)

    def _folded(self, block: list[bytes]) -> bytes:
        """Return a whole traceback, or its first and last line where it came before."""
        prefix = _parted(block[0])[0]
        is_whole = all(_parted(line)[0] == prefix for line in block)
        text = _NUMBERS.sub(b"", b"".join(_parted(line)[1] for line in block))
        if len(block) < _LEAST_LINES or not is_whole or text not in self._seen:
            self._seen.add(text)
            return b"".join(block)
        inner = b"%s  ... %d lines as before; the log has them, --verbose prints them\n" % (
            prefix,
            len(block) - 2,
        )
        return block[0] + inner + block[-1]


def _parted(line: bytes) -> tuple[bytes, bytes]:
    """Return the prefix of a rank, and what follows."""
    found = _RANK.match(line)
    return (found[0], line[found.end() :]) if found else (b"", line)


def _may_be_header(rest: bytes) -> bool:
    """Return whether an incomplete line may become the first of a traceback."""
    text = _parted(rest)[1]
    return bool(rest) and (_HEADER.startswith(text.rstrip()) or _RANKS.match(rest) is not None)
