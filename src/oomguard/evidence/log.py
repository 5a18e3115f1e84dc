"""Reads the log of a job as it grows and says what it shows, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from oomguard.evidence.frames import frame_at, traceback_before
from oomguard.evidence.job_phase import announced
from oomguard.evidence.log_lines import Line, read_line, read_lines, strip_ansi, unpack
from oomguard.evidence.match import match_line, shortage_in
from oomguard.evidence.message import (
    ANNOUNCED,
    FRAMES,
    LAST_OUTPUT,
    PROGRESS,
    PROGRESS_AFTER,
    TEXT_CHARS,
    Message,
    Tail,
    announced_before,
    begin,
    last_announced,
    last_frame,
    last_output,
    progress,
)
from oomguard.evidence.progress import (
    ANNOUNCEMENTS,
    BAR,
    announced_total,
    bar_total,
    is_loss,
    step_of,
    totals_of,
)
from oomguard.evidence.signatures import BY_ID, HARMLESS, ROOTS, Reading, Signature
from oomguard.evidence.verdict import Finding, Phase

_PIECE_BYTES = 1 << 16  # a longer line is read in pieces
_OVERLAP_BYTES = 1 << 12  # so that nothing is lost at a cut
_CONTEXT_BYTES = 1 << 16  # what is remembered of the lines before
_CONTEXT_LINES = 400
_LIVE_PER_SIGNATURE = 64
_LAST_PER_SIGNATURE = 16
_STEPS_THAT_SHOW_PROGRESS = 3
_WATCHED_LINES = 10_000
_TOTALS = 16  # announcements that are remembered
_JOINED_CHARS = 400  # of each of two lines, where a message may be broken between them
_SPLIT_CHARS = 40
_SPLIT_WORDS = (
    "out of memory", "outofmemory", "allocate memory", "to allocate", "resource exhausted",
    "resource_exhausted", "shared memory", "enough memory", "memoryerror", "bad_alloc",
)  # fmt: skip
_PIECE_OF_LINE = re.compile(rb"[^\r\n]+")
_EXCEPTION, _LAST_LINES = BY_ID["python-exception"].pattern, 5
_CUES = (*ROOTS, *ANNOUNCEMENTS)

#: Some programs say that they recover before they print from what (fairseq).
CAUGHT_BEFORE, CAUGHT_BEFORE_LINES = "caught", 5
#: Findings of the scanner that say nothing of one message by itself.
_OF_THE_WHOLE = (PROGRESS, FRAMES, LAST_OUTPUT, ANNOUNCED)
#: Readings of a message whose traceback may stand below it.
_WITH_A_PLACE = frozenset({Reading.SHORTAGE, Reading.MASKED, Reading.LOOK_ALIKE, Reading.ERROR})


@dataclass(slots=True)
class _Watch:
    """Return whether training steps follow an OOM: then the job caught it."""

    rank: int | None
    steps: set[int] = field(default_factory=set)
    lines: int = 0
    total: int | None = None  # of the bar on the line above


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
        self._prefilter = _Prefilter()
        self._totals: deque[int] = deque(maxlen=_TOTALS)
        self._watch: _Watch | None = None
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
        self._found += self._end_shows()
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
        return not (self._message or self._watch or self._tail or self._seen)

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
        if self._watch:
            self._watch_progress(line)
        if matched is None and not seen:
            broken = self._match_over_two(line)
            if broken is not None:
                signature, first, number = broken
                self._settle()
                self._found_in(signature, first, number, before)
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

    def _match_over_two(self, line: Line) -> tuple[Signature, Line, int] | None:
        """Return the OOM whose words are broken between the line above and this one."""
        raw, number = self._previous
        if not raw or len(raw) > _JOINED_CHARS or self._message is not None:
            return None
        head, rest = raw[-_JOINED_CHARS:].decode("utf-8", "replace").rstrip(), line.text
        ends, begins = head[-_SPLIT_CHARS:].lower(), rest[:_SPLIT_CHARS].lower()
        for gap in (" ", ""):
            window = ends + gap + (begins.lstrip() if gap else begins)
            if not any(x in window and x not in ends and x not in begins for x in _SPLIT_WORDS):
                continue
            above = read_line(raw)
            if above.rank != line.rank and line.rank is not None:
                return None
            text = above.text.rstrip() + gap + (rest.lstrip() if gap else rest)[:_JOINED_CHARS]
            matched = match_line(text)
            if matched and matched[0].reading is Reading.SHORTAGE:
                return matched[0], above, number
        return None

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
            self._watch = _Watch(line.rank)
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

    def _watch_progress(self, line: Line) -> None:
        """Note whether training steps follow an OOM."""
        watch = self._watch
        if watch is None:
            return
        watch.lines += 1
        if watch.total is not None and watch.total not in self._totals and is_loss(line.text):
            self._totals.append(watch.total)
        watch.total = bar_total(line.text)
        step = step_of(line.text, self._totals)
        if step is not None and line.rank == watch.rank:
            watch.steps.add(step)
        if len(watch.steps) >= _STEPS_THAT_SHOW_PROGRESS:
            self._settle()
            self._give_progress(progress(PROGRESS_AFTER, line, step, self._line, handled=True))
        if len(watch.steps) >= _STEPS_THAT_SHOW_PROGRESS or watch.lines > _WATCHED_LINES:
            self._watch = None

    def _give_progress(self, finding: Finding) -> None:
        """Return it; of many, the last one represents those in between."""
        self._counts[PROGRESS_AFTER] += 1
        if self._counts[PROGRESS_AFTER] > _LIVE_PER_SIGNATURE:
            self._late_progress = finding
        else:
            self._found.append(finding)

    def _end_shows(self) -> Iterator[Finding]:
        """Yield the last training step, the last frame of a cut traceback, else the last line."""
        first = self._line - self._before.count(b"\n")
        rows = enumerate(self._before.split(b"\n"), first)
        numbered = [(number, line) for number, row in rows for line in read_lines(row)]
        numbered = numbered[-_CONTEXT_LINES:]
        self._totals.extend(totals_of(line for _, line in numbered))
        for number, line in reversed(numbered):
            if (step := step_of(line.text, self._totals)) is not None:
                yield progress(PROGRESS, line, step, number, handled=False)
                break
        lines = [line for _, line in numbered]
        phase = announced_before(lines, None, self._totals)
        if phase is not Phase.UNKNOWN:
            number, line = next(x for x in reversed(numbered) if announced([x[1].text]) is phase)
            yield last_announced(phase, line, number)
        frames = traceback_before(lines, None).frames
        if frames and not any(_EXCEPTION.match(line.text) for line in lines[-_LAST_LINES:]):
            last = next(i for i in range(len(lines) - 1, -1, -1) if frame_at(lines, i))
            number, line = numbered[last]
            yield last_frame(lines, line, number)
        elif self._counts.keys() <= HARMLESS:
            said = next((x for x in reversed(numbered) if not self._is_routine(x[1].text)), None)
            if said:
                yield last_output(said[1], said[0])

    def _is_routine(self, text: str) -> bool:
        """Return whether a line is progress or a harmless notice, which explains no failure."""
        shows_progress = BAR.search(text) or step_of(text, self._totals) is not None
        return bool(shows_progress) or match_line(text) is not None


def classify(text: str) -> Finding | None:
    """Return what one message shows, for example that of an exception; None where it shows nothing.

    The first memory finding counts, else the first finding.
    """
    scanner = LogScanner()
    found = [*scanner.feed(text.encode()), *scanner.close()]
    shown = [f for f in found if f.signature not in _OF_THE_WHOLE]
    return next((f for f in shown if f.kind.is_memory), next(iter(shown), None))


_LOWER = bytes.maketrans(b"\rABCDEFGHIJKLMNOPQRSTUVWXYZ", b"\nabcdefghijklmnopqrstuvwxyz")
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
#: Words of the messages in which it matters which number stands there.
_NUMBERS_MATTER = (b"exit", b"rc=", b"signal", b"error (", *ANNOUNCEMENTS)
_FORMS, _FORM_BYTES = 1024, 512  # lines that are remembered, and their longest


class _Prefilter:
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


def _lines_before(before: tuple[bytes, ...], above: tuple[Line, ...]) -> list[Line]:
    """Return the lines above one: `above` are those of the same record."""
    return [*read_lines(b"".join(before)[-_CONTEXT_BYTES:]), *above][-_CONTEXT_LINES:]


def _line_end(block: bytes, start: int) -> int:
    match = re.compile(rb"[\r\n]").search(block, start)
    return match.end() if match else len(block)


def _excerpt(text: str, match: re.Match[str]) -> str:
    """Cut a very long line to what stands around the match."""
    return text[max(0, match.start() - 2000) : match.end() + 2000]
