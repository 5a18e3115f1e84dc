"""What a walk up the ladder leaves behind: the strategies it took and those it skipped."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.job.plan import Change
from oomguard.ladder.strategy import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A strategy that was applied: what it changed, and at which cost."""

    strategy: str
    summary: str
    fidelity: Fidelity
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A strategy that was skipped, and why."""

    strategy: str
    reason: str
