"""Mask secrets in the job's output while it streams; all other bytes stay as they are."""

from __future__ import annotations

import re

from oomguard.redact import MASK, Known, secret_spans
from oomguard.secret_shapes import may_hide

#: A longer line without an end is passed on in pieces.
_MOST_HELD_BYTES = 64 << 10
#: So much of an incomplete line is kept to see what its end belongs to.
_CONTEXT = 1 << 10
#: The first letters of a known secret at the end of a chunk hold it back, to see what follows.
_LEAST_PREFIX = 4
_LINE_END = re.compile(r"[^\r\n]*[\r\n]+")


class OutputMask:
    """Masks secrets line by line; an incomplete line is held back only if one may be in it.

    `known` are values that are masked wherever they stand. Bytes are read as Latin-1, which keeps
    each of them.
    """

    def __init__(self, known: Known = frozenset()) -> None:
        self._known = frozenset(value.encode().decode("latin-1") for value in known)
        self._line = ""  # the incomplete line, from its beginning
        self._passed = 0  # letters of it that were passed on
        self._in_key = False  # between the first and last line of a private key

    def feed(self, data: bytes) -> bytes:
        """Return what of the output may be passed on after these bytes."""
        text = self._line + data.decode("latin-1")
        end = max(text.rfind("\n"), text.rfind("\r")) + 1
        out = self._lines(text[:end]) if end else ""
        self._line = text[end:]
        if len(self._line) > _MOST_HELD_BYTES:
            out += self._rest(self._masked(self._line))
        elif not self._may_hide(self._line):
            out += self._rest(self._line[self._passed :])
        return out.encode("latin-1")

    def close(self) -> bytes:
        """Return what was held back."""
        rest = self._masked(self._line) if self._line else ""
        return rest.encode("latin-1")

    def _lines(self, text: str) -> str:
        if not self._in_key and not self._suspect(text):
            passed, self._passed = self._passed, 0
            return text[passed:]
        out = ""
        for line in _LINE_END.findall(text):
            out += self._masked(line)
            self._passed = 0
        return out

    def _rest(self, out: str) -> str:
        """Pass on the incomplete line as it is or masked, and keep the end of it."""
        self._line = self._line[-_CONTEXT:]
        self._passed = len(self._line)
        return out

    def _masked(self, line: str) -> str:
        begins = "PRIVATE KEY-----" in line
        if self._in_key and not begins:
            return MASK + line[len(line.rstrip("\r\n")) :]
        self._in_key = begins and "-----BEGIN" in line and "-----END" not in line
        at, out = self._passed, ""
        for start, end in secret_spans(line, self._known):
            if end > at:
                out += line[at : max(at, start)] + MASK
                at = end
        return out + line[at:]

    def _suspect(self, text: str) -> bool:
        return may_hide(text) or any(value in text for value in self._known)

    def _may_hide(self, line: str) -> bool:
        return self._suspect(line) or any(
            line.endswith(value[:length])
            for value in self._known
            for length in range(_LEAST_PREFIX, min(len(value), len(line) + 1))
        )
