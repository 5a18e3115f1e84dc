"""Sorts the findings of all witnesses into what can be the root of a failure and what cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from oomguard.evidence.log import classify
from oomguard.evidence.message import ABSURD, FRAMES, PROGRESS, PROGRESS_AFTER
from oomguard.evidence.signatures import BY_ID, NOTICES, Reading
from oomguard.evidence.verdict import Finding, Kind, Witness

#: A handler prints what it did next to the OOM, the traceback between them included.
_CAUGHT_WITHIN_LINES = 40
#: Signature of the finding that the training loop of a process has returned.
TRAINED = "trained"


@dataclass(frozen=True, slots=True)
class Case:
    """The findings, sorted into what can be a root."""

    findings: tuple[Finding, ...]
    shortages: tuple[Finding, ...]  # unhandled, each enough by itself
    caught: tuple[Finding, ...]
    survived: tuple[Finding, ...]  # those that only later steps or a completed training undid
    kills: tuple[Finding, ...]
    masked: tuple[Finding, ...]
    interruptions: tuple[Finding, ...]  # by a scheduler
    errors: tuple[Finding, ...]  # the job's own
    echoes: tuple[Finding, ...]  # symptoms, launchers, bare frames
    completed: bool
    trained: bool  # steps were seen
    trained_ranks: frozenset[int | None]  # whose training loop has returned
    went_on: bool  # the log ends with steps


def sort_findings(findings: Sequence[Finding], code: int | None) -> Case:
    """Return what each finding can be: a root, something that was survived, or an echo."""
    known = tuple(_reread(finding) for finding in findings)
    done = max((f.line or 0 for f in known if reading_of(f) is Reading.COMPLETED), default=None)
    tellers = [f for f in known if f.handled or f.kind is Kind.OK]
    groups: dict[str, list[Finding]] = {}
    for finding in known:
        groups.setdefault(_group(finding, tellers, code), []).append(finding)
    shortages, caught = tuple(groups.get("shortages", ())), tuple(groups.get("caught", ()))
    last = max((f.line or 0 for f in shortages), default=0)
    return Case(
        findings=known,
        shortages=shortages,
        caught=caught,
        survived=tuple(f for f in caught if not _was_handled(f, tellers)),
        kills=tuple(groups.get("kills", ())),
        masked=tuple(groups.get("masked", ())),
        interruptions=tuple(groups.get("interruptions", ())),
        errors=tuple(f for f in groups.get("errors", ()) if not _is_over(f, done)),
        echoes=tuple(groups.get("echoes", ())),
        completed=done is not None,
        trained=any(f.step or f.signature in (PROGRESS, PROGRESS_AFTER) for f in known),
        trained_ranks=frozenset(f.rank for f in known if f.signature == TRAINED),
        went_on=any(f.signature == PROGRESS and (f.line or 0) > last for f in known),
    )


def _is_over(finding: Finding, done: int | None) -> bool:
    """Return whether an error was overcome, for the training was completed after it."""
    return done is not None and finding.witness is Witness.LOG and (finding.line or 0) < done


_WORDS_THAT_COUNT = frozenset(
    {Reading.SHORTAGE, Reading.KILLED, Reading.MASKED, Reading.SYMPTOM, Reading.WRAPPER}
)


def _reread(finding: Finding) -> Finding:
    """An exception whose message is about memory is an OOM, whatever its type."""
    if finding.witness is not Witness.INSIDE or finding.kind is not Kind.NOT_OOM:
        return finding
    said = classify(finding.text)
    if said is None or reading_of(said) not in _WORDS_THAT_COUNT:
        return finding
    memory = reading_of(said) in (Reading.SHORTAGE, Reading.KILLED)
    kind = said.kind if memory else Kind.NOT_OOM
    return replace(
        finding, kind=kind, signature=said.signature, cause=said.cause,
        requested_bytes=finding.requested_bytes or said.requested_bytes,
        capacity_bytes=finding.capacity_bytes or said.capacity_bytes,
    )  # fmt: skip


_GROUPS = {
    Reading.SHORTAGE: "shortages",
    Reading.MASKED: "masked",
    Reading.KILLED: "kills",
    Reading.LOOK_ALIKE: "errors",
    Reading.ERROR: "errors",
    Reading.SYMPTOM: "echoes",
    Reading.WRAPPER: "echoes",
    Reading.TEARDOWN: "echoes",
    Reading.INTERRUPTED: "interruptions",
}


def _group(finding: Finding, tellers: Sequence[Finding], code: int | None = None) -> str:
    reading = reading_of(finding)
    if finding.kind.is_memory and reading not in (Reading.MASKED, Reading.KILLED):
        caught = _was_handled(finding, tellers) or _was_survived(finding, tellers, code)
        return "caught" if caught else "shortages"
    if finding.kind in (Kind.OK, Kind.UNKNOWN) or finding.signature in NOTICES:
        return "other"
    if finding.signature in (FRAMES, ABSURD):
        return "echoes"
    return _GROUPS.get(reading, "errors") if reading else "errors"


def _was_handled(finding: Finding, tellers: Iterable[Finding]) -> bool:
    """Return whether the job says that it caught the OOM."""
    if finding.handled or finding.witness is not Witness.LOG:
        return finding.handled
    return any(_says_caught(finding, other) for other in tellers)


def _says_caught(finding: Finding, other: Finding) -> bool:
    if other.witness is Witness.INSIDE:
        same = other.requested_bytes in (None, finding.requested_bytes)
        return other.handled and other.kind is finding.kind and same
    spoken = reading_of(other) is Reading.HANDLED or (other.handled and other.kind.is_memory)
    return spoken and 0 <= lines_after(finding, other) <= _CAUGHT_WITHIN_LINES


def _was_survived(finding: Finding, tellers: Sequence[Finding], code: int | None) -> bool:
    """Return whether the training of the same rank went on after the OOM, or was completed.

    Where the exit code is not known, to be completed takes steps: a program may say that it is
    done after it failed.
    """
    if finding.witness is not Witness.LOG:
        return False
    after = [f for f in tellers if f.rank == finding.rank and lines_after(finding, f) >= 0]
    if any(f.signature == PROGRESS_AFTER for f in after):
        return True
    completed = any(reading_of(f) is Reading.COMPLETED for f in after)
    return completed and (code is not None or any(f.signature == PROGRESS for f in after))


def lines_after(finding: Finding, other: Finding) -> int:
    """Return how many lines below a finding another one stands; -1 if it is not known."""
    if other.witness is not Witness.LOG or other.line is None or finding.line is None:
        return -1
    return other.line - finding.line


def reading_of(finding: Finding) -> Reading | None:
    """Return what the rule that matched means; None for a finding without one in the table."""
    signature = BY_ID.get(finding.signature or "")
    return signature.reading if signature else None


def is_shortage(finding: Finding) -> bool:
    """Return whether a finding is enough to stop the job: memory ran out, and nobody caught it."""
    return _group(_reread(finding), ()) == "shortages"
