"""Reads events.jsonl back, whatever a crash or a full disk has left of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from oomguard.errors import RunFolderError, Where
from oomguard.run.events import Event, Planned, RunStarted, event_from_json
from oomguard.run.state import RunRecord, replay


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The events of a run; `cut_bytes` at the end of the file, after `kept_bytes`, are no event."""

    events: tuple[Event, ...]
    kept_bytes: int
    cut_bytes: int

    @property
    def record(self) -> RunRecord:
        """What they add up to."""
        return replay(self.events)


def parse_history(data: bytes, file: str) -> History:
    """Read the events of a run; what is incomplete at the end is left out.

    Raises:
        RunFolderError: if no event is there, or one in the middle is damaged or out of place.
    """
    events: list[Event] = []
    kept = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        event = _event(line)
        if event is None and _any_event(data[kept + len(line) :]):
            raise _damaged(f"line {number} is no event", file, number)
        if event is None:
            break
        _check_place(event, events, file, number)
        events.append(event)
        kept += len(line)
    if not events:
        raise _damaged("it holds no whole event", file, 1)
    return History(events=tuple(events), kept_bytes=kept, cut_bytes=len(data) - kept)


def read_events(path: Path) -> Iterator[Event]:
    """Read the events of a run; a last line that was cut off is left out."""
    yield from parse_history(path.read_bytes(), str(path)).events


def _event(line: bytes) -> Event | None:
    if not line.endswith(b"\n"):
        return None
    try:
        document = msgspec.json.decode(line)
        return event_from_json(document) if isinstance(document, dict) else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _any_event(rest: bytes) -> bool:
    return any(_event(line) is not None for line in rest.splitlines(keepends=True))


def _check_place(event: Event, before: list[Event], file: str, number: int) -> None:
    """Refuse what cannot follow: a start in the middle, an attempt that was not planned."""
    begins = isinstance(event, RunStarted)
    planned = sum(isinstance(one, Planned) for one in before)
    attempt = getattr(event, "attempt", None)
    expected = planned + 1 if isinstance(event, Planned) else planned
    if begins == bool(before) or (attempt is not None and attempt != expected) or attempt == 0:
        raise _damaged(f"line {number} cannot follow the one before", file, number)


def _damaged(what: str, file: str, line: int) -> RunFolderError:
    return RunFolderError(
        f"the record of the run is damaged: {what}",
        where=Where(file=file, line=line),
        next_step="Launch the job anew; its own checkpoints are not touched by this.",
    )
