"""Parse events.jsonl, including one that a crash or a full disk has cut short."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from oomguard.errors import RunFolderError, Where
from oomguard.run.events import Event, Planned, RunStarted, event_from_json
from oomguard.run.state import RunRecord, replay


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The events of a run: the first `kept_bytes` of its file; the rest is incomplete."""

    events: tuple[Event, ...]
    kept_bytes: int
    cut_bytes: int

    @property
    def record(self) -> RunRecord:
        """The state that the events add up to."""
        return replay(self.events)


def parse_history(data: bytes, file: str) -> History:
    """Return the events of a run, without an incomplete one at the end.

    Raises:
        RunFolderError: if there is none, or one before the last is damaged or out of order.
    """
    events: list[Event] = []
    kept = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        event = _event(line)
        if event is None and _any_event(data[kept + len(line) :]):
            raise _damaged(f"line {number} is not an event", file, number)
        if event is None:
            break
        _check_place(event, events, file, number)
        events.append(event)
        kept += len(line)
    if not events:
        raise _damaged("it contains no complete event", file, 1)
    return History(events=tuple(events), kept_bytes=kept, cut_bytes=len(data) - kept)


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
    """Raise if an event cannot follow those before: a second start, an attempt never planned."""
    begins = isinstance(event, RunStarted)
    planned = sum(isinstance(one, Planned) for one in before)
    attempt = getattr(event, "attempt", None)
    expected = planned + 1 if isinstance(event, Planned) else planned
    if begins == bool(before) or (attempt is not None and attempt != expected) or attempt == 0:
        raise _damaged(f"the event in line {number} cannot follow the one before it", file, number)


def _damaged(what: str, file: str, line: int) -> RunFolderError:
    return RunFolderError(
        f"events.jsonl is damaged: {what}",
        where=Where(file=file, line=line),
        next_step="Launch the job again; its own checkpoints are not affected.",
    )
