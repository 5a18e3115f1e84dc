"""Runs told by their events, without a process: what the tests of `decide` share."""

from __future__ import annotations

from dataclasses import dataclass, field

from generators import make_ladder
from oomguard.ladder.climb import Ladder
from oomguard.run.decide import Action, Launch, decide
from oomguard.run.events import Event, Planned, Started
from oomguard.run.state import RunRecord


@dataclass(kw_only=True)
class Told:
    """Applies events and keeps what was decided."""

    ladder: Ladder = field(default_factory=make_ladder)
    record: RunRecord = field(default_factory=RunRecord)
    events: list[Event] = field(default_factory=list)

    def happen(self, event: Event) -> Action | None:
        self.events.append(event)
        self.record = self.record.apply(event)
        return decide(self.record, event, self.ladder)

    def launch(self, action: Launch, t: float = 1.0) -> Action | None:
        """Plan and start an attempt as decided."""
        number = len(self.record.attempts) + 1
        self.happen(Planned(t=t, attempt=number, spec=action.spec))
        return self.happen(Started(t=t, attempt=number, pid=7, command="x", kernel_watched=True))
