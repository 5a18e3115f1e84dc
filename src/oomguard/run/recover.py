"""Recover a run whose supervisor died: end leftover processes and judge the last attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from oomguard import present
from oomguard.evidence.case import TRAINED
from oomguard.evidence.signatures import BY_ID, Reading
from oomguard.evidence.verdict import Confidence, Finding, Kind, Verdict, Witness
from oomguard.machine.checkpoint_scan import Stamp
from oomguard.process.messages import (
    AnyReport,
    ByeReport,
    ErrorReport,
    Kernel,
    Lines,
    OomReport,
    Output,
    Report,
    ShellEvent,
    receive,
)
from oomguard.process.start import EXIT_FILE
from oomguard.process.stop import Leftovers, StopReport, cgroup_left, end_leftovers
from oomguard.run.attempt import StopReason
from oomguard.run.events import CutShort, Event, Exited, Noticed, Planned, Progress, Started
from oomguard.run.observer import Observer
from oomguard.run.printed_loss import LossEnds, LossReader
from oomguard.run.state import Attempt

CHUNK_BYTES = 1 << 20
GONE = "its oomguard exited before it did"
STOPPED = "stopped by a signal to oomguard"
Kept = TypeVar("Kept", bound=Event)


def end_last_attempt(events: Sequence[Event], *, grace_s: float) -> tuple[StopReport, int]:
    """End what still runs of the last attempt; return also how many of it the kernel OOM-killed.

    The kernel signalled its main process when the supervisor died, so a process that is still
    there is writing a checkpoint or ignores signals.
    """
    planned, started = _last(events, Planned), _last(events, Started)
    if planned is None:
        return StopReport(), 0
    if started is not None and started.attempt != planned.attempt:
        started = None
    left = Leftovers(
        mark=planned.mark,
        pid=started.pid if started else None,
        cgroup=cgroup_left(started.cgroup if started else None),
    )
    kills = left.cgroup.oom_kills() if left.cgroup else None
    return end_leftovers(left, grace_s=grace_s), kills or 0


def take_over(
    attempt: Attempt, folder: Path, now: Callable[[], float], *, oom_kills: int = 0
) -> Iterator[Event]:
    """Yield the events that complete a run's last attempt before the run can be resumed.

    If nobody saw it end, its log, reports and exit code are read. It counts as ended on its own if
    they show an OOM or an exit code. Otherwise it ended with its supervisor and is launched again.
    """
    if attempt.verdict is not None:
        if attempt.verdict.kind is Kind.INTERRUPTED:
            yield CutShort(t=now(), attempt=attempt.number, verdict=attempt.verdict)
        return
    code = _exit_code(folder)
    for event in _unseen(attempt, folder, now(), code, oom_kills):
        match event:
            case Noticed():
                attempt = attempt.with_finding(event)
            case Progress():
                attempt = attempt.with_progress(event)
        yield event
    yield _end(attempt, code, folder, now())


def stamp_of(events: Sequence[Event]) -> Stamp | None:
    """Return the checkpoints that existed before the last attempt, None if unknown."""
    planned = _last(events, Planned)
    return planned.before if planned else {}


def _end(attempt: Attempt, code: int | None, folder: Path, t: float) -> Event:
    verdict = attempt.concluded(code)
    if verdict.kind is Kind.INTERRUPTED:
        return CutShort(t=t, attempt=attempt.number, verdict=verdict)
    if code is None and _was_completed(attempt, folder):
        code, verdict = 0, attempt.concluded(0)
    stopped_for_good = attempt.stopped not in (None, StopReason.SIGNAL)
    if code is not None or verdict.kind.is_memory or stopped_for_good:
        loss = _loss(folder)
        return Exited(t=t, attempt=attempt.number, returncode=code, verdict=verdict, loss=loss)
    why = STOPPED if attempt.stopped == StopReason.SIGNAL else GONE
    cut = Verdict(
        kind=Kind.INTERRUPTED, root=why, confidence=Confidence.HIGH, evidence=verdict.evidence
    )
    return CutShort(t=t, attempt=attempt.number, verdict=cut)


def _was_completed(attempt: Attempt, folder: Path) -> bool:
    """Return whether training completed and the process then exited normally.

    The log alone does not prove it: the model is saved after the line that reports completion.
    """
    said = (BY_ID.get(found.signature or "") for found in attempt.findings)
    completed = any(one is not None and one.reading is Reading.COMPLETED for one in said)
    completed = completed or any(found.signature == TRAINED for found in attempt.findings)
    reports = list(attempt_reports(folder))
    failed = any(isinstance(report, (ErrorReport, OomReport)) for report in reports)
    return completed and not failed and bool(reports) and isinstance(reports[-1], ByeReport)


def attempt_reports(folder: Path) -> Iterator[AnyReport]:
    """Yield what the processes of an attempt reported: what arrived, then what did not."""
    yield from (seen.report for seen in _reports(folder / "memory.jsonl"))
    yield from (seen.report for seen in _buffered(folder))


def _unseen(
    attempt: Attempt, folder: Path, t: float, code: int | None, oom_kills: int
) -> Iterator[Event]:
    """Read what the attempt left and yield what the record does not have yet."""
    known = set(attempt.findings)
    observer = Observer(attempt.number)
    counted = sum(found.witness is Witness.KERNEL for found in attempt.findings)
    seen: list[ShellEvent] = [*_buffered(folder)]
    if oom_kills > counted:
        seen.append(Kernel(oom_kills=oom_kills - counted, total=oom_kills))
    fresh = [event for news in seen for event in observer.take(news, t)]
    fresh += [event for news in _printed(folder) for event in observer.take(news, t)]
    for event in (*fresh, *observer.close(t, well=code == 0)):
        if isinstance(event, Noticed) and _key(event.finding) not in map(_key, known):
            yield event
        elif isinstance(event, Progress):  # its clock is that of the reports, and not the run's
            yield replace(event, said_t=None)


def _key(finding: Finding) -> tuple[object, ...]:
    """Return what identifies a finding; its cause may be refined later."""
    return (finding.witness, finding.kind, finding.signature, finding.line, finding.text[:80])


def _printed(folder: Path) -> Iterator[Output]:
    with suppress(OSError), (folder / "log.txt").open("rb") as log:
        while chunk := log.read(CHUNK_BYTES):
            yield Output(data=chunk)


def _loss(folder: Path) -> LossEnds | None:
    losses = LossReader()
    for printed in _printed(folder):
        losses.feed(printed.data)
    return losses.close()


def _buffered(folder: Path) -> Iterator[Report]:
    """Yield the reports that processes of the job wrote to files, for lack of the socket."""
    for path in sorted((folder / "buffer").glob("*.jsonl")):
        if present.is_file(path):
            yield from _reports(path)


def _reports(path: Path) -> Iterator[Report]:
    lines = Lines()
    with suppress(OSError), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for line in lines.feed(chunk):
                report = receive(line)
                if report is not None:
                    yield report


def _exit_code(folder: Path) -> int | None:
    try:
        return int((folder / EXIT_FILE).read_text())
    except (OSError, ValueError):
        return None


def _last(events: Sequence[Event], kind: type[Kept]) -> Kept | None:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
