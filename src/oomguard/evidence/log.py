"""Reads the log of a job as it grows and says what it shows, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from oomguard.evidence.log_end import CONTEXT_LINES, end_shows
from oomguard.evidence.log_lines import Line, read_line, read_lines, unpack
from oomguard.evidence.match import match_line, match_over_two, shortage_in
from oomguard.evidence.message import (
    ANNOUNCED,
    FRAMES,
    LAST_OUTPUT,
    PROGRESS,
    PROGRESS_AFTER,
    TEXT_CHARS,
    Message,
    Tail,
    begin,
)
from oomguard.evidence.prefilter import Prefilter
from oomguard.evidence.progress import ANNOUNCEMENTS, BAR, announced_total
from oomguard.evidence.signatures import HARMLESS, Reading, Signature
from oomguard.evidence.steps_after import StepsAfter
from oomguard.evidence.verdict import Finding, Phase

_PIECE_BYTES = 1 << 16  # a longer line is read in pieces
_OVERLAP_BYTES = 1 << 12  # so that nothing is lost at a cut
_CONTEXT_BYTES = 1 << 16  # what is remembered of the lines before
_LIVE_PER_SIGNATURE = 64
_LAST_PER_SIGNATURE = 16
_TOTALS = 16  # announcements that are remembered
_PIECE_OF_LINE = re.compile(rb"[^\r\n]+")

#: Some programs say that they recover before they print from what (fairseq).
CAUGHT_BEFORE, CAUGHT_BEFORE_LINES = "caught", 5
#: Findings of the scanner that say nothing of one message by itself.
_OF_THE_WHOLE = (PROGRESS, FRAMES, LAST_OUTPUT, ANNOUNCED)
#: Readings of a message whose traceback may stand below it.
_WITH_A_PLACE = frozenset({Reading.SHORTAGE, Reading.MASKED, Reading.LOOK_ALIKE, Reading.ERROR})


class LogScanner:
    """Feeds on a log in chunks of any size; the findings do not depend on where chunks end.

    A memory error that states sizes may be broken over lines: it is given when they are complete,
    when something else follows, or after six lines. `peek` gives it at once.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._caught_line = -CAUGHT_BEFORE_LINES  # where a handler said that it recovers
        self._seen = 0  # bytes at the start of the buffer that were read with the piece before
        self._before = b""
        self._line = 1
        self._found: list[Finding] = []
        self._message: Message | None = None
        self._tail: Tail | None = None
        self._previous: tuple[bytes, int] = (b"", 0)  # the line above, and its number
        self._prefilter = Prefilter()
        self._totals: deque[int] = deque(maxlen=_TOTALS)
        self._steps_after: StepsAfter | None = None
        self._late_progress: Finding | None = None
        self._counts: Counter[str] = Counter()
        self._last: dict[str, deque[tuple[Signature, Line, int]]] = {}

    def feed(self, chunk: bytes) -> list[Finding]:
        """Read a chunk; give the findings that it completed."""
        self._buffer += chunk
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        if end:
            end += len(self._buffer) - len(chunk)
            block = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._read_block(block)
        if len(self._buffer) > _PIECE_BYTES:
            rest = self._cut(bytes(self._buffer))
            self._buffer = bytearray(rest)
        return self._take()

    def peek(self) -> list[Finding]:
        """Return the memory error that waits for further lines, as far as it is known."""
        return [self._message.complete()] if self._message else []

    def close(self) -> list[Finding]:
        """Read what is left; give the last findings, and what the end of the log shows."""
        if len(self._buffer) > self._seen:
            self._read_line(bytes(self._buffer), (self._before,))
            self._remember(bytes(self._buffer))
        self._buffer.clear()
        self._settle()
        self._end_tail()
        late = [
            begin(*kept, before=[], totals=()).complete()
            for last in self._last.values()
            for kept in last
        ]
        self._found += sorted(late, key=lambda finding: finding.line or 0)
        self._found += [self._late_progress] if self._late_progress else []
        self._last.clear()
        explained = not self._counts.keys() <= HARMLESS
        self._found += end_shows(self._before, self._line, self._totals, explained=explained)
        return self._take()

    def _take(self) -> list[Finding]:
        found, self._found = self._found, []
        return found

    def _read_block(self, block: bytes) -> None:
        """Read whole lines; many ordinary ones are skipped at once."""
        start = 0
        while start < len(block):
            end = start + _PIECE_BYTES
            if end < len(block):
                cut = max(block.rfind(b"\n", start, end), block.rfind(b"\r", start, end)) + 1
                end = cut or _line_end(block, end)
            part = block[start:end]
            if self._quiet and len(part) <= _PIECE_BYTES and not self._prefilter.lets_through(part):
                self._skip(part)
            else:
                self._read_part(part)
            start = end

    @property
    def _quiet(self) -> bool:
        return not (self._message or self._steps_after or self._tail or self._seen)

    def _skip(self, part: bytes) -> None:
        rows = part.rstrip(b"\r\n")
        cut = max(rows.rfind(b"\n"), rows.rfind(b"\r")) + 1
        if rows[cut:]:
            self._previous = rows[cut:], self._line + rows.count(b"\n")
        self._line += part.count(b"\n")
        self._remember(part)

    def _remember(self, part: bytes) -> None:
        self._before = (self._before + part)[-_CONTEXT_BYTES:]

    def _read_part(self, part: bytes) -> None:
        """Read lines one by one."""
        done = kept = 0
        for match in _PIECE_OF_LINE.finditer(part):
            self._line += part.count(b"\n", done, match.start())
            done, line = match.end(), match[0]
            if self._seen or len(line) > _PIECE_BYTES:
                self._remember(part[kept : match.start()])
                line, kept = self._cut(line), match.end()
                if len(line) > self._seen:
                    self._read_line(line, (self._before,))
                self._remember(line)
                self._seen = 0
            elif not self._quiet or self._prefilter.wants(line):
                known = self._counts.total()
                self._read_line(line, (self._before, part[kept : match.start()]))
                if self._quiet and self._counts.total() == known:
                    self._prefilter.showed_nothing(line)
            self._previous = line, self._line
        self._line += part.count(b"\n", done)
        self._remember(part[kept:])

    def _cut(self, line: bytes) -> bytes:
        """Read a long line piece by piece; give what is left of it."""
        while len(line) > _PIECE_BYTES:
            piece = line[:_PIECE_BYTES]
            if self._prefilter.lets_through(piece):
                self._read_line(piece, (self._before,))
            line, self._seen = line[_PIECE_BYTES - _OVERLAP_BYTES :], _OVERLAP_BYTES
        return line

    def _read_line(self, raw: bytes, before: tuple[bytes, ...]) -> None:
        """Read one physical line; the record of a structured log holds several."""
        seen = len(read_line(raw[: self._seen]).text) if self._seen else 0
        above: list[Line] = []
        for line in [read_line(raw)] if self._seen else unpack(raw):
            if line.text.strip():
                self._read_text(line, partial(_lines_before, before, tuple(above)), seen)
                above.append(line)

    def _read_text(self, line: Line, before: Callable[[], list[Line]], seen: int) -> None:
        total = announced_total(line.text) if self._may_announce(line) else None
        if total:
            self._totals.append(total)
        matched, number = match_line(line.text, seen=seen), self._line
        if self._steps_after:
            self._watch_steps(self._steps_after, line)
        if matched is None and not seen:
            above, number = self._previous
            broken = match_over_two(above, line) if self._message is None else None
            if broken is not None:
                self._settle()
                self._found_in(*broken, number, before)
                self._continue_message(line)
                return
        if matched is None:
            self._continue_message(line)
            if self._tail and self._tail.add(line, self._line):
                self._end_tail()
            return
        signature, match = matched
        if self._message and signature.kind is self._message.signature.kind:
            self._continue_message(line)  # it may be the same message, in further words
        self._settle()
        self._end_tail()
        self._found_in(signature, replace(line, text=_excerpt(line.text, match)), number, before)

    @staticmethod
    def _may_announce(line: Line) -> bool:
        lowered = line.text[:TEXT_CHARS].lower().encode("utf-8", "replace")
        return any(cue in lowered for cue in ANNOUNCEMENTS)

    def _continue_message(self, line: Line) -> None:
        message = self._message
        if message is None or BAR.search(line.text[:TEXT_CHARS]):
            return
        if line.rank != message.finding.rank and line.rank is not None:
            return
        message.add(line)
        if not message.wants_more:
            self._settle()

    def _found_in(
        self, signature: Signature, line: Line, number: int, before: Callable[[], list[Line]]
    ) -> None:
        """Make the finding of a line; keep it back where its message may go on.

        Of a signature that matched too often only the last lines are kept, for the end.
        """
        if signature.reading is Reading.HANDLED:
            signature = shortage_in(line.text) or signature
        if signature.id == CAUGHT_BEFORE:
            self._caught_line = self._line
        if signature.reading is Reading.SHORTAGE:
            self._steps_after = StepsAfter(line.rank)
        self._counts[signature.id] += 1
        if self._counts[signature.id] > _LIVE_PER_SIGNATURE:
            last = self._last.setdefault(signature.id, deque(maxlen=_LAST_PER_SIGNATURE))
            last.append((signature, line, number))
            return
        message = begin(signature, line, number, before(), self._totals)
        announced = self._line - self._caught_line <= CAUGHT_BEFORE_LINES
        if announced and signature.reading is Reading.SHORTAGE:
            message.finding = replace(message.finding, handled=True)
        if message.finding.phase is Phase.UNKNOWN and signature.reading in _WITH_A_PLACE:
            self._tail = Tail(message.finding.rank)
        self._message = message
        if not message.wants_more:
            self._settle()

    def _end_tail(self) -> None:
        """Record the traceback below an error, if there was one."""
        tail, self._tail = self._tail, None
        finding = tail.finding() if tail and tail.lines else None
        if finding and self._counts[FRAMES] < _LIVE_PER_SIGNATURE:
            self._counts[FRAMES] += 1
            self._found.append(finding)

    def _settle(self) -> None:
        """Return the memory error that was held back."""
        if self._message:
            self._found.append(self._message.complete())
            self._message = None

    def _watch_steps(self, watch: StepsAfter, line: Line) -> None:
        """Note whether training goes on; of many such findings keep the last for the end."""
        found = watch.add(line, self._line, self._totals)
        if found:
            self._settle()
            self._counts[PROGRESS_AFTER] += 1
            if self._counts[PROGRESS_AFTER] > _LIVE_PER_SIGNATURE:
                self._late_progress = found
            else:
                self._found.append(found)
        if watch.over:
            self._steps_after = None


def classify(text: str) -> Finding | None:
    """Return what one message shows, for example that of an exception; None where it shows nothing.

    The first memory finding counts, else the first finding.
    """
    scanner = LogScanner()
    found = [*scanner.feed(text.encode()), *scanner.close()]
    shown = [f for f in found if f.signature not in _OF_THE_WHOLE]
    return next((f for f in shown if f.kind.is_memory), next(iter(shown), None))


def _lines_before(before: tuple[bytes, ...], above: tuple[Line, ...]) -> list[Line]:
    """Return the lines above one: `above` are those of the same record."""
    return [*read_lines(b"".join(before)[-_CONTEXT_BYTES:]), *above][-CONTEXT_LINES:]


def _line_end(block: bytes, start: int) -> int:
    match = re.compile(rb"[\r\n]").search(block, start)
    return match.end() if match else len(block)


def _excerpt(text: str, match: re.Match[str]) -> str:
    """Cut a very long line to what stands around the match."""
    return text[max(0, match.start() - 2000) : match.end() + 2000]
