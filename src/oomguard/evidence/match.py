"""Which signature a line carries, and whether it reports a failure or only speaks of one."""

from __future__ import annotations

import re

from oomguard.evidence.log_lines import Line, read_line
from oomguard.evidence.signatures import (
    ADVICE,
    ADVICE_AFTER,
    CODE,
    REPORTED,
    SIGNATURES,
    Reading,
    Signature,
)

_JOINED_CHARS = 400  # of each of two lines, where a message may be broken between them
_SPLIT_CHARS = 40
_SPLIT_WORDS = (
    "out of memory", "outofmemory", "allocate memory", "to allocate", "resource exhausted",
    "resource_exhausted", "shared memory", "enough memory", "memoryerror", "bad_alloc",
)  # fmt: skip
_MEMORY = frozenset({Reading.SHORTAGE, Reading.MASKED, Reading.KILLED})


def match_line(text: str, *, seen: int = 0) -> tuple[Signature, re.Match[str]] | None:
    """Return the first signature of the table that a line carries.

    Matches that end within the first `seen` characters were met before and do not count.
    """
    lowered = text.lower()
    for signature in SIGNATURES:
        if not signature.may_match(lowered):
            continue
        match = signature.pattern.search(text)
        if match and match.end() > seen and not _only_speaks(signature, text, match):
            return signature, match
    return None


def match_over_two(above: bytes, line: Line) -> tuple[Signature, Line] | None:
    """Return the OOM whose words are broken between the line above and this one."""
    if not above or len(above) > _JOINED_CHARS:
        return None
    head, rest = above.decode("utf-8", "replace").rstrip(), line.text
    ends, begins = head[-_SPLIT_CHARS:].lower(), rest[:_SPLIT_CHARS].lower()
    for gap in (" ", ""):
        window = ends + gap + (begins.lstrip() if gap else begins)
        if not any(x in window and x not in ends and x not in begins for x in _SPLIT_WORDS):
            continue
        first = read_line(above)
        if first.rank != line.rank and line.rank is not None:
            return None
        text = first.text.rstrip() + gap + (rest.lstrip() if gap else rest)[:_JOINED_CHARS]
        matched = match_line(text)
        if matched and matched[0].reading is Reading.SHORTAGE:
            return matched[0], first
    return None


def is_caught(text: str) -> bool:
    """Return whether the line itself says that the program caught the OOM."""
    lowered = text.lower()
    return any(
        s.reading is Reading.HANDLED and s.may_match(lowered) and s.pattern.search(text)
        for s in SIGNATURES
    )


def shortage_in(text: str) -> Signature | None:
    """Return the OOM that a line reports as caught."""
    lowered = text.lower()
    found = (s for s in SIGNATURES if s.reading is Reading.SHORTAGE and s.may_match(lowered))
    return next((s for s in found if s.pattern.search(text)), None)


def _only_speaks(signature: Signature, text: str, match: re.Match[str]) -> bool:
    """Return whether the line is advice, documentation or source code instead of a report."""
    if signature.reading not in _MEMORY:
        return False
    if CODE.search(text[max(0, match.start() - 200) : match.end()]):
        return True
    before, after = text[max(0, match.start() - 100) : match.start()], text[match.end() :][:100]
    if REPORTED.search(before) or "ried to allocate" in after:
        return False
    return bool(ADVICE.search(before) or ADVICE_AFTER.match(after))
