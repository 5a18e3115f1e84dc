"""The state machine: a record and what just happened give the next action. Pure.

| state    | event                                        | action                      |
|----------|----------------------------------------------|-----------------------------|
| NEW      | RunStarted                                   | Launch the asked plan       |
| RUNNING  | an out-of-memory error is sure, on any rank  | Stop the whole group        |
| RUNNING  | Signalled                                    | Stop the whole group        |
| RUNNING, STOPPING | Exited, for want of memory          | WaitForDevice               |
| RUNNING, STOPPING | Exited, otherwise                   | Finish                      |
| WAITING  | DeviceFree, a rung is left                   | Launch the next plan        |
| WAITING  | DeviceFree, none is left                     | Finish EXHAUSTED            |
| NEW, WAITING | Signalled                                | Finish INTERRUPTED          |
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.checkpoint import Continuation
from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.ladder import Ladder
from oomguard.plan import Plan
from oomguard.record import (
    Attempt,
    DeviceFree,
    Event,
    Exited,
    RunRecord,
    RunStarted,
    Signalled,
    Skip,
    State,
    Status,
    Step,
)

#: Seconds that a job may go on after its log said out of memory. It may have caught the error and
#: be about to take another step; where no reporter inside can say so, it gets longer, and where
#: the reporter says that the error has not ended the process, longer still.
PATIENCE_S = 1.0
PATIENCE_BLIND_S = 5.0
PATIENCE_CAUGHT_S = 60.0

OUT_OF_MEMORY = "out of memory"
SIGNAL = "signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start an attempt."""

    plan: Plan
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skip, ...] = ()
    begins: Continuation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop every process of the running attempt."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitForDevice:
    """Wait until what the attempt held is free again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """End the run."""

    status: Status
    reason: str
    skipped: tuple[Skip, ...] = ()


Action = Launch | Stop | WaitForDevice | Finish


def decide(record: RunRecord, event: Event, ladder: Ladder) -> Action | None:
    """Give the action that answers `event`, which is in `record` already; None: go on."""
    match event:
        case Signalled():
            return _on_signal(record, event)
        case Exited():
            return _on_exit(record, event.verdict)
        case DeviceFree():
            return _on_device(record, event, ladder)
        case RunStarted():
            plan, steps = ladder.prepare(event.job)
            return Launch(plan=plan, steps=steps)
        case _ if record.state is State.RUNNING and _is_sure(record.last, event.t):
            return Stop(reason=OUT_OF_MEMORY)
    return None


def _on_signal(record: RunRecord, event: Signalled) -> Action | None:
    if record.state is State.RUNNING:
        return Stop(reason=SIGNAL)
    if record.state in (State.NEW, State.WAITING):
        return Finish(status=Status.INTERRUPTED, reason=f"signal {event.signum}")
    return None


def _is_sure(attempt: Attempt, now: float) -> bool:
    """Whether the attempt is lost: its own process says so, or it has not gone on since."""
    if any(_decisive(finding) for finding in attempt.findings):
        return True
    if attempt.suspected_t is None:
        return False
    return now - attempt.suspected_t >= _patience_s(attempt)


def _decisive(finding: Finding) -> bool:
    return finding.witness is Witness.INSIDE and finding.kind.is_memory and not finding.handled


def _patience_s(attempt: Attempt) -> float:
    if attempt.caught:
        return PATIENCE_CAUGHT_S
    return PATIENCE_S if attempt.reporting else PATIENCE_BLIND_S


def _on_exit(record: RunRecord, verdict: Verdict) -> Action:
    if record.signum is not None and verdict.kind is not Kind.OK:
        return Finish(status=Status.INTERRUPTED, reason=f"signal {record.signum}")
    if verdict.kind is Kind.OK:
        return Finish(status=Status.FIT, reason="trained to the end")
    if verdict.kind.is_memory:
        return WaitForDevice()
    if verdict.kind is Kind.INTERRUPTED:
        return Finish(status=Status.INTERRUPTED, reason=verdict.root or "interrupted")
    return Finish(status=Status.FAILED, reason=verdict.root or "the job failed")


def _on_device(record: RunRecord, event: DeviceFree, ladder: Ladder) -> Action:
    job, limits, why = record.job, record.limits, record.last.verdict
    if record.signum is not None:
        return Finish(status=Status.INTERRUPTED, reason=f"signal {record.signum}")
    if job is None or limits is None or why is None:
        raise AssertionError("a device is waited for only after an attempt of a started run")
    if not event.free:
        return Finish(status=Status.FAILED, reason=f"the device did not become free: {event.busy}")
    if len(record.attempts) >= limits.max_attempts:
        return Finish(
            status=Status.EXHAUSTED, reason=f"{limits.max_attempts} attempts, and none fits"
        )
    tried = [attempt.plan for attempt in record.attempts]
    taken = [step.strategy for attempt in record.attempts for step in attempt.steps]
    rung = ladder.climb(job, tried, taken, why)
    if rung.plan is None or rung.step is None:
        return Finish(
            status=Status.EXHAUSTED, reason="no rung of the ladder is left", skipped=rung.skipped
        )
    damaged = any(attempt.damaged for attempt in record.attempts)
    begins = ladder.begin(job, rung.plan, record.checkpoints, damaged=damaged)
    return Launch(plan=rung.plan, steps=(rung.step,), skipped=rung.skipped, begins=begins)
