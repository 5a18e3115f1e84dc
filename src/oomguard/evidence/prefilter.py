"""Separates the lines of a log that may show something from ordinary ones."""

from __future__ import annotations

from oomguard.evidence.log_lines import strip_ansi
from oomguard.evidence.progress import ANNOUNCEMENTS
from oomguard.evidence.signatures import ROOTS

_CUES = (*ROOTS, *ANNOUNCEMENTS)
_LOWER = bytes.maketrans(b"\rABCDEFGHIJKLMNOPQRSTUVWXYZ", b"\nabcdefghijklmnopqrstuvwxyz")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
#: Words of the messages in which it matters which number stands there.
_NUMBERS_MATTER = (b"exit", b"rc=", b"signal", b"error (", *ANNOUNCEMENTS)
_FORMS, _FORM_BYTES = 1024, 512  # lines that are remembered, and their longest


class Prefilter:
    """Separates lines that may show something from ordinary ones.

    Ordinary lines repeat but for their digits: the forms that were met are remembered.
    """

    def __init__(self) -> None:
        self._without_cue: set[bytes] = set()
        self._without_match: set[bytes] = set()

    def lets_through(self, part: bytes) -> bool:
        """Return whether a piece of log contains any cue."""
        if b"\x1b" in part or b"\0" in part:
            part = strip_ansi(part.decode("utf-8", "replace")).encode()
        forms = set(part.translate(_LOWER, b"0123456789").split(b"\n")) - self._without_cue
        text = b"\n".join(forms)
        if any(cue in text for cue in _CUES):
            return True
        _keep(self._without_cue, forms)
        return False

    def wants(self, line: bytes) -> bool:
        """Return whether a line has to be read: it has a cue, and its like has not been read."""
        return line.translate(_ZEROS) not in self._without_match and self.lets_through(line)

    def showed_nothing(self, line: bytes) -> None:
        """Remember a line that was read in vain, where its numbers would change nothing."""
        lowered = line.lower()
        if not any(word in lowered for word in _NUMBERS_MATTER):
            _keep(self._without_match, {line.translate(_ZEROS)})


def _keep(known: set[bytes], forms: set[bytes]) -> None:
    if len(known) > _FORMS:
        known.clear()
    known.update(form for form in forms if len(form) <= _FORM_BYTES)
