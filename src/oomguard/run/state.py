"""The state of a run: a fold over its events.

Everything that oomguard knows about a run follows from its events, so that a run can be replayed
and its report rebuilt from `events.jsonl` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from typing_extensions import assert_never

from oomguard.evidence.case import is_shortage
from oomguard.evidence.judge import StoppedBy, judge
from oomguard.evidence.message import PROGRESS_AFTER
from oomguard.evidence.refusals import is_refusal
from oomguard.evidence.verdict import Finding, Kind, Phase, Verdict, Witness
from oomguard.job.checkpoint import Checkpoint
from oomguard.job.plan import Plan
from oomguard.job.provenance import DataFingerprint, Environment
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Skip, Step, Untried
from oomguard.process.messages import StepTimes
from oomguard.run.attempt import AttemptSpec, StopReason, Weighed
from oomguard.run.events import (
    Counted,
    CutShort,
    DeviceFree,
    Event,
    Exited,
    Finished,
    Growing,
    HistoryRef,
    LeftRunning,
    Limits,
    Noticed,
    NotSplit,
    Planned,
    Predicted,
    Probed,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Signalled,
    Split,
    Start,
    Started,
    Status,
    Stopping,
    Ticked,
)
from oomguard.run.grown import with_growth
from oomguard.run.leak import Growth
from oomguard.run.printed_loss import LossEnds
from oomguard.run.splits import Splits, SplitStep, SplitTally


class State(str, Enum):
    """Where a run stands."""

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"  # an attempt is being stopped
    WAITING = "waiting"  # for the device to become free, then for the next attempt
    DONE = "done"


#: What happens to one attempt after it was planned.
AttemptEvent = (
    Started
    | Progress
    | Counted
    | Probed
    | Split
    | NotSplit
    | Noticed
    | Growing
    | Saved
    | Stopping
    | LeftRunning
    | Exited
    | CutShort
    | DeviceFree
)


#: Seconds that a probe may stay silent after its steps before it is stopped.
PROBE_LINGERS_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One launch of the job, as far as it is known. `steps_done` counts optimizer steps.

    `probed` is set once a process has taken all steps of a probe; `longest_batch` is then the
    longest row of its batches, in tokens. `tally` counts its steps that ran in smaller parts,
    `times` how long its steps took, those of the rank whose parts took longest; `load_s` is the
    seconds until its first step was done, `weighed` why it was stopped for a cheaper change,
    `single_row` the width of a row that did not fit alone, `undivided` why its batches were not
    divided.
    """

    number: int
    spec: AttemptSpec
    started_t: float | None = None
    ended_t: float | None = None
    command: str = ""
    kernel_watched: bool = False
    reporting: bool = False
    phase: Phase = Phase.LAUNCH
    steps_done: int = 0
    host_peak_bytes: int | None = None
    data_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    loaded_bytes: int | None = None
    context_bytes: int | None = None
    findings: tuple[Finding, ...] = ()
    heard_t: float | None = None
    suspected_t: float | None = None
    caught: bool = False
    stopped: StopReason | None = None
    returncode: int | None = None
    log_error: str | None = None
    verdict: Verdict | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    damaged: tuple[str, ...] = ()
    growth: Growth | None = None
    saved: tuple[int, ...] = ()
    probed: bool = False
    longest_batch: int | None = None
    counted: tuple[Counted, ...] = ()
    tally: SplitTally | None = None
    times: StepTimes | None = None
    load_s: float | None = None
    weighed: Weighed | None = None
    single_row: int | None = None
    undivided: str | None = None
    loss: LossEnds | None = None

    @property
    def splits(self) -> Splits | None:
        """Return its steps that ran in smaller parts."""
        return None if self.tally is None else self.tally.splits

    @property
    def ran_out(self) -> bool:
        """Return whether it ran out of memory."""
        return self.verdict is not None and self.verdict.kind.is_memory

    @property
    def has_trained(self) -> bool:
        """Return whether optimizer steps or the end of training were seen."""
        return self.steps_done > 0 or any(found.kind is Kind.OK for found in self.findings)

    @property
    def first_step(self) -> int:
        """The optimizer step of the checkpoint that it started from; 0 without one."""
        from_ = self.spec.begins.checkpoint if self.spec.begins else None
        return from_.step if from_ else 0

    @property
    def completed(self) -> bool:
        """Return whether it has trained to completion."""
        trained = self.verdict is not None and self.verdict.kind is Kind.OK
        return trained and self.spec.probe is None

    @property
    def refused_step(self) -> Step | None:
        """The step that the framework rejected, if that ended this attempt.

        The first attempt is the requested config: a failure there is the job's own.
        """
        if self.verdict is None or not self.verdict.kind.is_other_failure or self.number == 1:
            return None
        refused = not self.steps_done and is_refusal(self.verdict.root or "")
        return self.spec.steps[-1] if self.spec.steps and refused else None

    @property
    def seconds(self) -> float | None:
        """How long it ran, None if it has not ended."""
        if self.started_t is None or self.ended_t is None:
            return None
        return self.ended_t - self.started_t

    @property
    def probe_passed(self) -> bool:
        """Return whether it is a probe that has ended and shown that its plan fits."""
        verdict = self.verdict
        if self.spec.probe is None or verdict is None or verdict.kind.is_memory:
            return False
        ended_early = verdict.kind is Kind.OK and self.steps_done > 0
        return self.probed or ended_early

    def lingers(self, now: float) -> bool:
        """Return whether a probe has taken its steps and does not exit."""
        return self.probed and self.heard_t is not None and now - self.heard_t >= PROBE_LINGERS_S

    def concluded(self, returncode: int | None) -> Verdict:
        """Return the verdict on all that was seen of it; the exit code is None if nobody saw it."""
        stopped_by = None
        if self.stopped is not None:
            by_user = self.stopped is StopReason.SIGNAL
            stopped_by = StoppedBy.USER if by_user else StoppedBy.OOMGUARD
        verdict = judge(
            self.findings, returncode, kernel_watched=self.kernel_watched, stopped_by=stopped_by
        )
        return with_growth(
            verdict,
            self.growth,
            returncode=returncode,
            steps_done=self.steps_done,
            data_peak_bytes=self.data_peak_bytes,
        )

    def with_event(self, event: AttemptEvent) -> Attempt:  # noqa: C901, PLR0911, PLR0912  a case for each kind
        """Return the attempt after one more event of its own."""
        match event:
            case Started():
                return replace(
                    self,
                    started_t=event.t,
                    command=event.command,
                    kernel_watched=event.kernel_watched,
                )
            case Progress():
                return self.with_progress(event)
            case Counted():
                return replace(self, counted=(*self.counted, event))
            case Probed():
                longest = _larger(self.longest_batch, event.longest)
                return replace(self, probed=True, longest_batch=longest)
            case Split():
                times = _slower(self.times, event.timing)
                return replace(self, tally=_split(self.tally, event), times=times)
            case NotSplit():
                if event.width:
                    return replace(self, single_row=event.width)
                return replace(self, undivided=event.reason)
            case Noticed():
                return self.with_finding(event)
            case Growing():
                return replace(self, growth=_sooner(self.growth, event.growth))
            case Saved():
                return replace(self, saved=(*self.saved, event.checkpoint.step))
            case Stopping():
                return replace(self, stopped=event.reason, weighed=event.weighed)
            case LeftRunning():
                return self
            case Exited():
                return replace(
                    self,
                    ended_t=event.t,
                    returncode=event.returncode,
                    log_error=event.log_error,
                    loss=event.loss,
                    verdict=event.verdict,
                )
            case CutShort():
                ended_t = event.t if self.ended_t is None else self.ended_t
                return replace(self, ended_t=ended_t, verdict=event.verdict)
            case DeviceFree():
                return replace(self, checkpoints=event.checkpoints, damaged=event.damaged)
            case _:
                assert_never(event)

    def with_progress(self, event: Progress) -> Attempt:
        """Return the attempt after a progress report of one of its processes."""
        advanced = event.step > self.steps_done
        at = event.t if event.said_t is None else event.said_t
        load_s = self.load_s
        if load_s is None and event.step > 0 and self.started_t is not None:
            load_s = event.t - self.started_t
        went_on = advanced and self.suspected_t is not None and at > self.suspected_t
        return replace(
            self._gone_on() if went_on else self,
            reporting=True,
            heard_t=event.t,
            load_s=load_s,
            phase=event.phase,
            steps_done=max(self.steps_done, event.step),
            caught=event.caught or (self.caught and not advanced),
            host_peak_bytes=_larger(self.host_peak_bytes, event.host_bytes),
            data_peak_bytes=_larger(self.data_peak_bytes, event.data_bytes),
            device_peak_bytes=_larger(self.device_peak_bytes, event.device_bytes),
            reserved_peak_bytes=_larger(self.reserved_peak_bytes, event.reserved_bytes),
            loaded_bytes=_larger(self.loaded_bytes, event.loaded_bytes),
            context_bytes=_larger(self.context_bytes, event.context_bytes),
        )

    def with_finding(self, event: Noticed) -> Attempt:
        """Return the attempt after a finding; the first unhandled OOM raises suspicion.

        Steps in the log end the suspicion; whether they undo the OOM, the exit code decides.
        """
        suspected = None if event.finding.signature == PROGRESS_AFTER else self.suspected_t
        if suspected is None and is_shortage(event.finding):
            suspected = event.t
        return replace(self, findings=(*self.findings, event.finding), suspected_t=suspected)

    def _gone_on(self) -> Attempt:
        """Return the attempt with the OOMs of its log and its helpers marked as handled.

        A step after them shows it.
        """
        findings = tuple(
            replace(found, handled=True)
            if (found.witness is Witness.LOG or found.helper) and is_shortage(found)
            else found
            for found in self.findings
        )
        return replace(self, findings=findings, suspected_t=None)


def _split(old: SplitTally | None, event: Split) -> SplitTally:
    step = SplitStep(
        step=event.step, rank=event.rank, failed=event.failed, parts=event.parts,
        rows=event.rows, width=event.width, tokens=event.tokens, seconds=event.seconds,
        refused=event.refused,
    )  # fmt: skip
    tally = old or SplitTally()
    if event.evaluation:
        return tally.with_evaluation(step)
    return tally.with_step(step, event.spans or ((event.step - event.steps + 1, event.step),))


def _slower(old: StepTimes | None, new: StepTimes | None) -> StepTimes | None:
    """Return the times of the rank whose steps in parts have taken longest."""
    if old is None or new is None:
        return old if new is None else new
    return new if new.divided.seconds >= old.divided.seconds else old


def _sooner(old: Growth | None, new: Growth) -> Growth:
    """Return the trend that runs out of memory first: of several ranks the first one counts."""
    if old is None or old.forecast_step is None or new.forecast_step is None:
        return new
    is_newer = new.step > old.step
    return new if is_newer or new.forecast_step < old.forecast_step else old


def _larger(old: int | None, new: int | None) -> int | None:
    return max((value for value in (old, new) if value is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that is known of a run."""

    run: str = ""
    version: str = ""
    at: str = ""
    job: Job | None = None
    start: Start | None = None
    predicted: tuple[Predicted, ...] = ()
    lessons: HistoryRef | None = None
    folder: str = ""
    environment: Environment | None = None
    data: DataFingerprint | None = None
    limits: Limits | None = None
    state: State = State.NEW
    attempts: tuple[Attempt, ...] = ()
    signum: int | None = None
    status: Status | None = None
    reason: str = ""
    skipped_last: tuple[Skip, ...] = ()
    untried: tuple[Untried, ...] = ()
    ended_t: float | None = None

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def rungs_tried(self) -> int:
        """How many attempts had a plan of their own; those that only went on do not count."""
        return sum(1 for attempt in self.attempts if attempt.number == 1 or attempt.spec.steps)

    @property
    def checkpoints(self) -> tuple[tuple[Checkpoint, Plan], ...]:
        """The whole checkpoints of this run, each with the plan that it was written under."""
        kept: dict[str, tuple[Checkpoint, Plan]] = {}
        for attempt in self.attempts:
            for path in attempt.damaged:
                kept.pop(path, None)
            kept.update({found.path: (found, attempt.spec.plan) for found in attempt.checkpoints})
        return tuple(kept.values())

    def predicted_for(self, plan: Plan) -> Predicted | None:
        """Return the peak that was predicted for a plan."""
        return next((one for one in self.predicted if one.plan == plan), None)

    def with_last(self, attempt: Attempt, state: State | None = None) -> RunRecord:
        """Return the record with the latest attempt replaced."""
        return replace(self, attempts=(*self.attempts[:-1], attempt), state=state or self.state)

    def apply(self, event: Event) -> RunRecord:  # noqa: PLR0911  one return for each kind of event
        """Return the record after one more event."""
        match event:
            case RunStarted():
                return replace(
                    self,
                    run=event.run,
                    version=event.version,
                    at=event.at,
                    job=event.job,
                    start=event.start,
                    predicted=event.predicted,
                    lessons=event.lessons,
                    folder=event.folder,
                    environment=event.environment,
                    data=event.data,
                    limits=event.limits,
                )
            case Resumed():
                return self._with_resume(event)
            case Planned():
                attempt = Attempt(number=event.attempt, spec=event.spec)
                return replace(self, attempts=(*self.attempts, attempt), state=State.RUNNING)
            case Finished():
                return replace(
                    self,
                    state=State.DONE,
                    status=event.status,
                    reason=event.reason,
                    skipped_last=event.skipped,
                    untried=event.untried,
                    ended_t=event.t,
                )
            case Signalled():
                return replace(self, signum=self.signum or event.signum)
            case Ticked():
                return self
            case Exited() | CutShort():
                return self.with_last(self.last.with_event(event), State.WAITING)
            case Stopping():
                return self.with_last(self.last.with_event(event), State.STOPPING)
            case _:
                return self.with_last(self.last.with_event(event))

    def _with_resume(self, event: Resumed) -> RunRecord:
        limits = self.limits
        if limits is not None and event.grace_s is not None:
            limits = replace(limits, grace_s=event.grace_s)
        resumed = replace(
            self,
            limits=limits,
            environment=event.environment or self.environment,
            data=event.data or self.data,
            signum=None,
            status=None,
            reason="",
            skipped_last=(),
            untried=(),
            ended_t=None,
        )
        if not self.attempts:
            return replace(resumed, state=State.NEW)
        ended = self.last.verdict is not None
        return replace(resumed, state=State.WAITING if ended else State.RUNNING)


def started_job(record: RunRecord) -> tuple[Job, Limits]:
    """Return the job and the limits of a run that was started."""
    if record.job is None or record.limits is None:
        raise AssertionError("the first event names job and limits")
    return record.job, record.limits


def replay(events: Iterable[Event]) -> RunRecord:
    """Fold events into a record."""
    record = RunRecord()
    for event in events:
        record = record.apply(event)
    return record
