"""Reads the log of a job as it grows and says what it shows, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from oomguard.evidence.context import (
    Line,
    is_frame,
    last_step,
    phase_before,
    rank_of,
    read_line,
    read_lines,
    step_of,
    strip_ansi,
    traceback_before,
)
from oomguard.evidence.figures import Stated, read_figures
from oomguard.evidence.match import candidates, is_caught, match_line, shortage_in
from oomguard.evidence.signatures import (
    BY_ID,
    DRIVER_FORMS,
    HARMLESS,
    ROOTS,
    SIGNATURES,
    Figures,
    Reading,
    Signature,
)
from oomguard.evidence.verdict import Confidence, Finding, Kind, Phase, Witness

_PIECE_BYTES = 1 << 16  # a longer line is read in pieces
_OVERLAP_BYTES = 1 << 12  # so that nothing is lost at a cut
_CONTEXT_BYTES = 1 << 16  # what is remembered of the lines before
_CONTEXT_LINES = 400
_TEXT_CHARS = 400
_CONTINUATION_LINES = 6
_LIVE_PER_SIGNATURE = 64
_LAST_PER_SIGNATURE = 16
_STEPS_THAT_SHOW_PROGRESS = 3
_WATCHED_LINES = 10_000
_PIECE_OF_LINE = re.compile(rb"[^\r\n]+")
_EXCEPTION, _LAST_LINES = BY_ID["python-exception"].pattern, 5
_PROGRESS_BAR = re.compile(r"\d+%\||it/s|s/it")

#: Some programs say that they recover before they print from what (fairseq).
CAUGHT_BEFORE, CAUGHT_BEFORE_LINES = "caught", 5
#: Signatures that the scanner itself gives.
PROGRESS, PROGRESS_AFTER, FRAMES, ABSURD = "progress", "progress-after", "traceback", "absurd-size"
LAST_OUTPUT = "last-output"  # the last line that is not routine, of a log that shows no error


@dataclass(slots=True)
class _Message:
    """A memory error whose further lines may still come."""

    signature: Signature
    finding: Finding
    text: str
    lines: int = 0

    def complete(self) -> Finding:
        """Return the finding with the sizes that the lines until now state."""
        if self.signature.figures is Figures.NONE:
            return self.finding
        return _with_figures(self.finding, read_figures(self.text))

    @property
    def wants_more(self) -> bool:
        stated, figures = read_figures(self.text), self.signature.figures
        asked = figures in (Figures.BOTH, Figures.REQUESTED) and stated.requested_bytes is None
        capacity = figures in (Figures.BOTH, Figures.CAPACITY) and stated.capacity_bytes is None
        return (asked or capacity) and self.lines < _CONTINUATION_LINES


@dataclass(slots=True)
class _Watch:
    """Return whether training steps follow an OOM: then the job caught it."""

    rank: int | None
    steps: set[int] = field(default_factory=set)
    lines: int = 0


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
        self._message: _Message | None = None
        self._watch: _Watch | None = None
        self._late_progress: Finding | None = None
        self._among: Sequence[Signature] = SIGNATURES
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
        self._among = SIGNATURES
        if len(self._buffer) > self._seen:
            self._read_line(bytes(self._buffer), (self._before,))
            self._remember(bytes(self._buffer))
        self._buffer.clear()
        self._settle()
        late = [
            _message(*kept, lines=[]).complete() for last in self._last.values() for kept in last
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
            if self._quiet and len(part) <= _PIECE_BYTES and not _worth_reading(part):
                self._skip(part)
            else:
                self._read_part(part)
            start = end

    @property
    def _quiet(self) -> bool:
        return self._message is None and self._watch is None and not self._seen

    def _skip(self, part: bytes) -> None:
        self._line += part.count(b"\n")
        self._remember(part)

    def _remember(self, part: bytes) -> None:
        self._before = (self._before + part)[-_CONTEXT_BYTES:]

    def _read_part(self, part: bytes) -> None:
        """Read lines one by one."""
        done = kept = 0
        self._among = candidates(_plain(part))
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
            elif self._watch or self._message or _worth_reading(line):
                self._read_line(line, (self._before, part[kept : match.start()]))
        self._line += part.count(b"\n", done)
        self._remember(part[kept:])

    def _cut(self, line: bytes) -> bytes:
        """Read a long line piece by piece; give what is left of it."""
        self._among = SIGNATURES if len(line) > _PIECE_BYTES else self._among
        while len(line) > _PIECE_BYTES:
            piece = line[:_PIECE_BYTES]
            if _worth_reading(piece):
                self._read_line(piece, (self._before,))
            line, self._seen = line[_PIECE_BYTES - _OVERLAP_BYTES :], _OVERLAP_BYTES
        return line

    def _read_line(self, raw: bytes, before: tuple[bytes, ...]) -> None:
        line = read_line(raw)
        if not line.text.strip():
            return
        seen = len(read_line(raw[: self._seen]).text) if self._seen else 0
        matched = match_line(line.text, self._among, seen=seen)
        if self._watch:
            self._watch_progress(line)
        if matched is None:
            self._continue_message(line)
            return
        signature, match = matched
        self._settle()
        self._found_in(signature, Line(_excerpt(line.text, match), line.rank), before)

    def _continue_message(self, line: Line) -> None:
        message = self._message
        if message is None or _PROGRESS_BAR.search(line.text[:_TEXT_CHARS]):
            return
        if line.rank != message.finding.rank and line.rank is not None:
            return
        message.lines += 1
        message.text += " " + line.text.strip()[:_TEXT_CHARS]
        if not message.wants_more:
            self._settle()

    def _found_in(self, signature: Signature, line: Line, before: tuple[bytes, ...]) -> None:
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
            last.append((signature, line, self._line))
            return
        message = _message(signature, line, self._line, lines=[*_lines_before(before), line])
        announced = self._line - self._caught_line <= CAUGHT_BEFORE_LINES
        if announced and signature.reading is Reading.SHORTAGE:
            message.finding = replace(message.finding, handled=True)
        self._message = message
        if not message.wants_more:
            self._settle()

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
        step = step_of(line.text[:4096])
        if step is not None and line.rank == watch.rank:
            watch.steps.add(step)
        if len(watch.steps) >= _STEPS_THAT_SHOW_PROGRESS:
            self._settle()
            self._give_progress(_progress(PROGRESS_AFTER, line, step, self._line, handled=True))
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
        for number, line in reversed(numbered):
            if (step := step_of(line.text)) is not None:
                yield _progress(PROGRESS, line, step, number, handled=False)
                break
        lines = [line for _, line in numbered]
        frames = traceback_before(lines, None).frames
        if frames and not any(_EXCEPTION.match(line.text) for line in lines[-_LAST_LINES:]):
            number, frame = next(x for x in reversed(numbered) if is_frame(x[1]))
            yield Finding(
                witness=Witness.LOG, kind=Kind.NOT_OOM, signature=FRAMES, line=number,
                text=" ".join(frame.text.split())[:_TEXT_CHARS], confidence=Confidence.LOW,
                phase=phase_before([*lines, Line("", None)], None),
            )  # fmt: skip
        elif self._counts.keys() <= HARMLESS:
            last = next((x for x in reversed(numbered) if not _is_routine(x[1].text)), None)
            if last:
                yield Finding(
                    witness=Witness.LOG, kind=Kind.NOT_OOM, signature=LAST_OUTPUT, line=last[0],
                    text=" ".join(last[1].text.split())[:_TEXT_CHARS], confidence=Confidence.LOW,
                )  # fmt: skip


def _is_routine(text: str) -> bool:
    """Return whether a line is progress or a harmless notice, which explains no failure."""
    progress = _PROGRESS_BAR.search(text) or step_of(text[:4096]) is not None
    return bool(progress) or match_line(text) is not None


def classify(text: str) -> Finding | None:
    """Return what one message shows, for example that of an exception; None where it shows nothing.

    The first memory finding counts, else the first finding.
    """
    scanner = LogScanner()
    found = [*scanner.feed(text.encode()), *scanner.close()]
    shown = [f for f in found if f.signature not in (PROGRESS, FRAMES, LAST_OUTPUT)]
    return next((f for f in shown if f.kind.is_memory), next(iter(shown), None))


def _plain(part: bytes) -> bytes:
    """Return the text that needles are looked for in: lower case, without colours."""
    if b"\x1b" in part or b"\0" in part:
        part = strip_ansi(part.decode("utf-8", "replace")).encode()
    return part.lower()


def _worth_reading(part: bytes) -> bool:
    plain = _plain(part)
    return any(root in plain for root in ROOTS)


def _lines_before(before: tuple[bytes, ...]) -> list[Line]:
    return read_lines(b"".join(before)[-_CONTEXT_BYTES:])[-_CONTEXT_LINES:]


def _line_end(block: bytes, start: int) -> int:
    match = re.compile(rb"[\r\n]").search(block, start)
    return match.end() if match else len(block)


def _excerpt(text: str, match: re.Match[str]) -> str:
    """Cut a very long line to what stands around the match."""
    return text[max(0, match.start() - 2000) : match.end() + 2000]


def _message(signature: Signature, line: Line, number: int, *, lines: list[Line]) -> _Message:
    finding = _finding(signature, line, lines, number)
    if signature.reading is Reading.SHORTAGE and is_caught(line.text):
        finding = replace(finding, handled=True)
    return _Message(signature, finding, line.text.strip())


def _finding(signature: Signature, line: Line, lines: list[Line], number: int) -> Finding:
    rank = rank_of(line)
    kind = signature.kind
    if signature in DRIVER_FORMS and traceback_before(lines[:-1], rank).pins_memory:
        kind = Kind.PINNED_OOM
    phase = phase_before(lines, rank) if signature.phase is Phase.UNKNOWN else signature.phase
    return Finding(
        witness=Witness.LOG, kind=kind, text=" ".join(line.text.split())[:_TEXT_CHARS], phase=phase,
        signature=signature.id, line=number, rank=rank, step=last_step(lines[:-1], rank),
        confidence=_confidence(signature, line.text), handled=signature.reading is Reading.HANDLED,
    )  # fmt: skip


def _confidence(signature: Signature, text: str) -> Confidence:
    if not signature.strong:
        return Confidence.LOW
    reported = signature.reading is Reading.SHORTAGE and ("Error" in text or "kill" in text.lower())
    return Confidence.HIGH if reported else Confidence.MEDIUM


def _with_figures(finding: Finding, stated: Stated) -> Finding:
    if not finding.kind.is_memory:
        return finding
    if stated.absurd:
        return replace(finding, kind=Kind.NOT_OOM, signature=ABSURD, requested_bytes=None)
    known = stated.requested_bytes is not None or stated.capacity_bytes is not None
    return replace(
        finding, requested_bytes=stated.requested_bytes, capacity_bytes=stated.capacity_bytes,
        cause=stated.cause, confidence=Confidence.HIGH if known else finding.confidence,
    )  # fmt: skip


def _progress(name: str, line: Line, step: int | None, number: int, *, handled: bool) -> Finding:
    return Finding(
        witness=Witness.LOG, kind=Kind.OK, text=" ".join(line.text.split())[:_TEXT_CHARS],
        signature=name, line=number, rank=line.rank, step=step,
        confidence=Confidence.LOW, handled=handled,
    )  # fmt: skip
