"""Parse events.jsonl, including one that a crash or a full disk has cut short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import msgspec

from oomguard.errors import RunFolderError, Where
from oomguard.run.events import (
    Event,
    Noticed,
    Planned,
    Progress,
    RunStarted,
    event_from_json,
    is_event,
)
from oomguard.run.state import RunRecord, replay

#: Reports after a finding that stay single: they show whether the job goes on.
SINGLE_AFTER_FINDING = 16
_PROGRESS = b'{"event":"progress",'
_PROGRESS_DECODER = msgspec.json.Decoder(Progress)
_PEAKS = tuple(field.name for field in fields(Progress) if field.name.endswith("_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The events of a run: the first `kept_bytes` of its file; the rest is incomplete.

    Successive reports of progress are merged, so that a run of a million events stays small.
    """

    events: tuple[Event, ...]
    kept_bytes: int
    cut_bytes: int

    @property
    def record(self) -> RunRecord:
        """The state that the events add up to."""
        return replay(self.events)


def parse_history(lines: Iterable[bytes], file: str) -> History:
    """Return the events of a run, without an incomplete one at the end.

    Raises:
        RunFolderError: if there is none, one before the last is damaged or out of order, or one is
            of a version that has other events.
    """
    events: list[Event] = []
    kept_bytes = cut_bytes = planned = single = stepped = 0
    broken: int | None = None
    is_kept = False  # the last event: when an attempt took its first step is told by it alone
    for number, line in enumerate(lines, start=1):
        event = _event(line, file, number)
        if broken is not None or event is None:
            if event is not None:
                raise _damaged(f"line {broken} is not an event", file, broken)
            broken, cut_bytes = broken or number, cut_bytes + len(line)
            continue
        planned += isinstance(event, Planned)
        _check_place(event, events, planned, file, number)
        kept_bytes += len(line)
        single = SINGLE_AFTER_FINDING if isinstance(event, Noticed) else max(0, single - 1)
        if single or is_kept or not events or not _can_merge(events[-1], event):
            events.append(event)
        else:
            events[-1] = _merged(events[-1], event)
        is_kept = isinstance(event, Progress) and event.step > 0 and event.attempt != stepped
        stepped = event.attempt if is_kept and isinstance(event, Progress) else stepped
    if not events:
        raise _damaged("it contains no complete event", file, 1)
    return History(events=tuple(events), kept_bytes=kept_bytes, cut_bytes=cut_bytes)


def _can_merge(before: Event, event: Event) -> bool:
    if not isinstance(before, Progress) or not isinstance(event, Progress):
        return False
    return not (before.caught or event.caught)


def _merged(before: Event, event: Event) -> Event:
    """Return the progress that two reports in a row show: the newer one, with both peaks."""
    if not isinstance(before, Progress) or not isinstance(event, Progress):
        return event
    peaks = {}
    for name in _PEAKS:
        old, new = getattr(before, name), getattr(event, name)
        if old is not None and (new is None or old > new):
            peaks[name] = old
    if before.step <= event.step and not peaks:
        return event
    return replace(event, step=max(before.step, event.step), **peaks)


def _event(line: bytes, file: str, number: int) -> Event | None:
    """Return the event of a line, None if it is not a whole one."""
    if not line.endswith(b"\n"):
        return None
    try:
        if line.startswith(_PROGRESS):
            return _PROGRESS_DECODER.decode(line)
        document = msgspec.json.decode(line)
        return event_from_json(document) if isinstance(document, dict) else None
    except (msgspec.DecodeError, RecursionError):
        return None
    except ValueError as error:
        if not is_event(document):
            raise _of_another_version(str(document.get("event")), file, number) from error
        return None


def _check_place(event: Event, before: list[Event], planned: int, file: str, number: int) -> None:
    """Raise if an event cannot follow those before: a second start, an attempt never planned."""
    begins = isinstance(event, RunStarted)
    attempt = getattr(event, "attempt", None)
    if begins == bool(before) or (attempt is not None and attempt != planned) or attempt == 0:
        raise _damaged(f"the event in line {number} cannot follow the one before it", file, number)


def _damaged(what: str, file: str, line: int | None) -> RunFolderError:
    return RunFolderError(
        f"events.jsonl is damaged: {what}",
        where=Where(file=file, line=line),
        next_step="Launch the job again; its own checkpoints are not affected.",
    )


def _of_another_version(name: str, file: str, line: int) -> RunFolderError:
    return RunFolderError(
        f"another version of oomguard has written this run: it has no event {name!r}",
        where=Where(file=file, line=line),
        next_step="Resume it with the newer version; nothing was changed.",
    )
