"""One message of a log: which finding it is, with the sizes that its further lines state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from oomguard.evidence.figures import Stated, read_figures
from oomguard.evidence.frames import traceback_after, traceback_before
from oomguard.evidence.job_phase import announced, phase_in_words, phase_of
from oomguard.evidence.log_lines import Line, rank_of
from oomguard.evidence.match import is_caught
from oomguard.evidence.progress import last_step, step_of
from oomguard.evidence.signatures import DRIVER_FORMS, Figures, Reading, Signature
from oomguard.evidence.verdict import Confidence, Finding, Kind, Phase, Witness

TEXT_CHARS = 400
_CONTINUATION_LINES = 6
_TERMINAL_COLUMNS = 60  # a line that a terminal broke is at least as wide
_TAIL_LINES = 400
_TAIL_GAP = 12  # lines without a frame that end a traceback

#: Signatures that the scanner itself gives.
PROGRESS, PROGRESS_AFTER, FRAMES, ABSURD = "progress", "progress-after", "traceback", "absurd-size"
LAST_OUTPUT = "last-output"  # the last line that is not routine, of a log that shows no error
ANNOUNCED = "announced"  # what the job said last that it was doing


@dataclass(slots=True)
class Message:
    """A memory error whose further lines may still come."""

    signature: Signature
    finding: Finding
    lines: list[Line]

    def add(self, line: Line) -> None:
        """Append one more line."""
        self.lines.append(replace(line, text=line.text[:TEXT_CHARS]))

    def complete(self) -> Finding:
        """Return the finding with the sizes that the lines until now state."""
        if self.signature.figures is Figures.NONE:
            return self.finding
        return with_figures(self.finding, self._stated())

    @property
    def wants_more(self) -> bool:
        """Return whether the message should state sizes that it has not stated yet."""
        figures, stated = self.signature.figures, self._stated()
        asked = figures in (Figures.BOTH, Figures.REQUESTED) and stated.requested_bytes is None
        capacity = figures in (Figures.BOTH, Figures.CAPACITY) and stated.capacity_bytes is None
        return (asked or capacity) and len(self.lines) <= _CONTINUATION_LINES

    def _stated(self) -> Stated:
        """Return the sizes; a terminal breaks lines inside words, people break them at spaces."""
        wrapped = "".join(line.text for line in self.lines)
        spaced = " ".join(line.text.strip() for line in self.lines)
        widths = [line.width for line in self.lines[:2]]
        broken = len(widths) > 1 and widths[0] == widths[1] >= _TERMINAL_COLUMNS
        first, second = (wrapped, spaced) if broken else (spaced, wrapped)
        return read_figures(first).or_else(read_figures(second))


@dataclass(slots=True)
class Tail:
    """The lines below an error that named no place: its traceback may stand there."""

    rank: int | None
    lines: list[Line] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    gap: int = 0

    def add(self, line: Line, number: int) -> bool:
        """Append a line; return whether the traceback has ended."""
        self.lines.append(line)
        self.numbers.append(number)
        if len(self.lines) % _TAIL_GAP:
            return False
        found = traceback_after(self.lines[-_TAIL_GAP:], self.rank)
        return not found.frames or len(self.lines) >= _TAIL_LINES

    def finding(self) -> Finding | None:
        """Return the traceback, if it names a phase."""
        found = traceback_after(self.lines, self.rank)
        phase = phase_of(found)
        if phase is Phase.UNKNOWN or not found.frames:
            return None
        line, number = self.lines[0], self.numbers[0]
        return _log_finding(FRAMES, Kind.NOT_OOM, line, number, phase=phase, rank=self.rank)


def begin(
    signature: Signature, line: Line, number: int, before: Sequence[Line], totals: Collection[int]
) -> Message:
    """Return the message that a line begins; `before` are the lines above it."""
    finding = _finding(signature, line, number, before, totals)
    if signature.reading is Reading.SHORTAGE and is_caught(line.text):
        finding = replace(finding, handled=True)
    return Message(signature, finding, [line])


def progress(name: str, line: Line, step: int | None, number: int, *, handled: bool) -> Finding:
    """Return the finding of a training step."""
    found = _log_finding(name, Kind.OK, line, number, rank=line.rank, handled=handled)
    return replace(found, step=step)


def last_frame(lines: Sequence[Line], line: Line, number: int) -> Finding:
    """Return the finding of a traceback whose error is cut."""
    phase = phase_before([*lines, Line("", None)], None)
    return _log_finding(FRAMES, Kind.NOT_OOM, line, number, phase=phase)


def last_output(line: Line, number: int) -> Finding:
    """Return the finding of the last line that is not routine."""
    return _log_finding(LAST_OUTPUT, Kind.UNKNOWN, line, number)


def last_announced(phase: Phase, line: Line, number: int) -> Finding:
    """Return the finding of what the job said last that it was doing."""
    return _log_finding(ANNOUNCED, Kind.UNKNOWN, line, number, phase=phase)


def phase_before(lines: Sequence[Line], rank: int | None, totals: Collection[int] = ()) -> Phase:
    """Return what the job was doing when the last of these lines was printed."""
    phase = phase_of(traceback_before(lines[:-1], rank))
    if phase is not Phase.UNKNOWN or not lines:
        return phase
    said = phase_in_words(lines[-1].text)
    if said is Phase.UNKNOWN:
        said = announced([lines[-1].text])
    return said if said is not Phase.UNKNOWN else announced_before(lines, rank, totals)


def announced_before(lines: Sequence[Line], rank: int | None, totals: Collection[int]) -> Phase:
    """Return the phase that was announced last, unless training steps followed it."""
    for line in reversed(lines):
        if rank is not None and line.rank not in (None, rank):
            continue
        phase = announced([line.text])
        if phase is not Phase.UNKNOWN:
            return phase
        if step_of(line.text, totals) is not None:
            return Phase.UNKNOWN
    return Phase.UNKNOWN


def with_figures(finding: Finding, stated: Stated) -> Finding:
    """Return a memory finding with its sizes; an absurd one is a symptom of another bug."""
    if not finding.kind.is_memory:
        return finding
    if stated.absurd:
        return replace(finding, kind=Kind.NOT_OOM, signature=ABSURD, requested_bytes=None)
    known = stated.requested_bytes is not None or stated.capacity_bytes is not None
    return replace(
        finding, requested_bytes=stated.requested_bytes, capacity_bytes=stated.capacity_bytes,
        cause=stated.cause, confidence=Confidence.HIGH if known else finding.confidence,
    )  # fmt: skip


def _finding(
    signature: Signature, line: Line, number: int, before: Sequence[Line], totals: Collection[int]
) -> Finding:
    rank = rank_of(line)
    kind = signature.kind
    if signature in DRIVER_FORMS and traceback_before(before, rank).pins_memory:
        kind = Kind.PINNED_OOM
    phase = signature.phase
    if phase is Phase.UNKNOWN:
        phase = phase_before([*before, line], rank, totals)
    found = _log_finding(
        signature.id, kind, line, number, phase=phase, rank=rank,
        handled=signature.reading is Reading.HANDLED,
    )  # fmt: skip
    return replace(
        found, step=last_step(before, rank, totals), confidence=_confidence(signature, line.text)
    )


def _confidence(signature: Signature, text: str) -> Confidence:
    if not signature.strong:
        return Confidence.LOW
    reported = signature.reading is Reading.SHORTAGE and ("Error" in text or "kill" in text.lower())
    return Confidence.HIGH if reported else Confidence.MEDIUM


def _log_finding(
    signature: str, kind: Kind, line: Line, number: int, *,
    phase: Phase = Phase.UNKNOWN, rank: int | None = None, handled: bool = False,
) -> Finding:  # fmt: skip
    return Finding(
        witness=Witness.LOG, kind=kind, text=" ".join(line.text.split())[:TEXT_CHARS], phase=phase,
        signature=signature, line=number, rank=rank, confidence=Confidence.LOW, handled=handled,
    )  # fmt: skip
