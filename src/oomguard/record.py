"""What happened, as a list of events, and the record that they add up to.

Everything that oomguard knows of a run follows from its events: `RunRecord` is a fold over them,
so that a run can be replayed and a report rebuilt from `events.jsonl` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import msgspec

from oomguard.checkpoint import Checkpoint, Continuation
from oomguard.evidence.judge import is_shortage
from oomguard.evidence.log import PROGRESS_AFTER
from oomguard.evidence.refusals import is_refusal
from oomguard.evidence.verdict import Finding, Kind, Phase, Verdict, Witness
from oomguard.growth import Growth
from oomguard.job import Job
from oomguard.plan import Change, Plan
from oomguard.strategy import Fidelity


class Status(str, Enum):
    """How a run ended."""

    FIT = "fit"  # trained to the end
    EXHAUSTED = "exhausted"  # no rung is left, or no attempt
    FAILED = "failed"  # for another reason than memory
    INTERRUPTED = "interrupted"


class State(str, Enum):
    """Where a run stands."""

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"  # an attempt was told to stop and has not gone yet
    WAITING = "waiting"  # for the device to be free, then for the next rung
    DONE = "done"


class Purpose(str, Enum):
    """What an attempt is for."""

    TRAIN = "train"  # the plan that the ladder gives
    TRIAL = "trial"  # with less changed than in a plan that fits: is that enough?
    BEST = "best"  # the least changed of the plans that were seen to fit, to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A rung that was taken: what it changed, and at which cost."""

    strategy: str
    summary: str
    fidelity: Fidelity
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A rung that was passed over, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the run: which rungs, at which cost, how often, under which caps.

    `relax` takes back changes that turn out to be unnecessary; `grow` begins small instead of as
    asked, and grows to the largest that fits.
    `grace_s` is what the job gets to write a checkpoint once oomguard is asked to stop;
    `strategies` a user's own folder of them (absolute), `inside` whether the reporter is used.
    """

    ladder: tuple[str, ...]
    allow: Fidelity
    max_attempts: int
    host_memory_bytes: int | None = None
    host_memory_by: str | None = None
    gpu_memory_bytes: int | None = None
    hang_timeout_s: float | None = None
    relax: bool = False
    grow: bool = False
    grace_s: float = 30.0
    strategies: str | None = None
    inside: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `t` is in seconds since the run began."""

    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A rung to begin at instead of at what was asked; the fields are those of `Planned`."""

    plan: Plan
    steps: tuple[Step, ...]
    path: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The first event: what was asked, by which version, at which time of day (ISO 8601, UTC).

    `masked` says that secrets in the job are masked, and `job.json` holds it as it was asked.
    """

    run: str
    version: str
    at: str
    job: Job
    limits: Limits
    masked: bool = False
    start: Start | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """Another supervisor took the run over, `at` this time of day; `t` went on without the gap.

    `cut_bytes` is how much of an incomplete last event was dropped; `grace_s` is from now on what
    the job gets, where it was given anew.
    """

    version: str
    at: str
    cut_bytes: int = 0
    grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """An attempt was decided on.

    `path` names the strategies that lead from what was asked to its plan, in their order;
    `steps` are those that are new in it, `undone` those of the plan before that are not.
    `mark` is in the environment of all its processes; `before` are the checkpoints that lay there
    already, each with the time of its newest change (ns), None where that is not known.
    """

    attempt: int
    mark: str = ""
    before: Mapping[str, int] | None = None
    plan: Plan
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skip, ...] = ()
    begins: Continuation | None = None
    purpose: Purpose = Purpose.TRAIN
    path: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The attempt's process exists; `kernel_watched` says whether OOM kills would be seen.

    `cgroup` is the folder of the memory cgroup of its own, where it has one.
    """

    attempt: int
    pid: int
    command: str
    kernel_watched: bool
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """What a process of the job said of itself; bytes are peaks so far.

    `caught` says that an out-of-memory error passes through it, which it may yet catch.
    `said_t` is when it said so: on its way the report may have been overtaken by the log.
    """

    attempt: int
    pid: int
    rank: int | None
    step: int
    phase: Phase
    host_bytes: int | None = None
    device_bytes: int | None = None
    reserved_bytes: int | None = None
    caught: bool = False
    said_t: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed(Event):
    """A piece of evidence about a failure."""

    attempt: int
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing(Event):
    """Memory rises from step to step in a process of the job."""

    attempt: int
    rank: int | None
    growth: Growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """The attempt has written a whole checkpoint and goes on."""

    attempt: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    """The attempt was told to stop."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited(Event):
    """The attempt's process ended; `verdict` is what is concluded from all that was seen.

    `returncode` is None where nobody was there to see it.
    """

    attempt: int
    returncode: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CutShort(Event):
    """The attempt ended with its supervisor, or by a signal to it: its plan is not at fault."""

    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Signalled(Event):
    """oomguard itself was asked to stop."""

    signum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFree(Event):
    """The wait for the device is over: `free`, or `busy` says what still holds it.

    `checkpoints` are the whole ones that the attempt wrote, `damaged` the paths of the others.
    """

    attempt: int
    free: bool
    waited_s: float
    busy: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """Time passed; never recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """The run ended."""

    status: Status
    reason: str
    skipped: tuple[Skip, ...] = ()


_KINDS = {
    "run_started": RunStarted,
    "resumed": Resumed,
    "planned": Planned,
    "started": Started,
    "progress": Progress,
    "noticed": Noticed,
    "growing": Growing,
    "saved": Saved,
    "stopping": Stopping,
    "exited": Exited,
    "cut_short": CutShort,
    "signalled": Signalled,
    "device_free": DeviceFree,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_json(event: Event) -> dict[str, object]:
    """Give an event as a JSON object; `event` names its kind."""
    return {"event": _NAMES[type(event)], **msgspec.to_builtins(event, order="deterministic")}


def event_from_json(document: Mapping[str, object]) -> Event:
    """Read back what `event_to_json` gave.

    Raises:
        ValueError: if the document is no event of this version.
    """
    kind = _KINDS.get(str(document.get("event")))
    if kind is None:
        raise ValueError(f"unknown event {document.get('event')!r}")
    body = {name: value for name, value in document.items() if name != "event"}
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One launch of the job, as far as it is known. `steps_done` counts optimizer steps."""

    number: int
    plan: Plan
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skip, ...] = ()
    started_t: float | None = None
    ended_t: float | None = None
    command: str = ""
    kernel_watched: bool = False
    reporting: bool = False
    phase: Phase = Phase.LAUNCH
    steps_done: int = 0
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    findings: tuple[Finding, ...] = ()
    heard_t: float | None = None
    suspected_t: float | None = None
    caught: bool = False
    stopped: str | None = None
    returncode: int | None = None
    verdict: Verdict | None = None
    begins: Continuation | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    damaged: tuple[str, ...] = ()
    growth: Growth | None = None
    saved: tuple[int, ...] = ()
    purpose: Purpose = Purpose.TRAIN
    path: tuple[str, ...] = ()

    @property
    def ran_out(self) -> bool:
        """Whether it ended for want of memory."""
        return self.verdict is not None and self.verdict.kind.is_memory

    @property
    def first_step(self) -> int:
        """How many optimizer steps of the run were done when it began."""
        from_ = self.begins.checkpoint if self.begins else None
        return from_.step if from_ else 0

    @property
    def refused_step(self) -> Step | None:
        """The step that the framework refused, if this attempt ended with that.

        The first attempt is the user's own; what fails there is the job's own failure.
        """
        if self.verdict is None or self.verdict.kind is not Kind.NOT_OOM or self.number == 1:
            return None
        refused = not self.steps_done and is_refusal(self.verdict.root or "")
        return self.steps[-1] if self.steps and refused else None

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        if self.started_t is None or self.ended_t is None:
            return None
        return self.ended_t - self.started_t

    def with_progress(self, event: Progress) -> Attempt:
        """Take in what a process said of itself."""
        advanced = event.step > self.steps_done
        at = event.t if event.said_t is None else event.said_t
        went_on = advanced and self.suspected_t is not None and at > self.suspected_t
        return replace(
            self._gone_on() if went_on else self,
            reporting=True,
            heard_t=event.t,
            phase=event.phase,
            steps_done=max(self.steps_done, event.step),
            caught=event.caught or (self.caught and not advanced),
            host_peak_bytes=_larger(self.host_peak_bytes, event.host_bytes),
            device_peak_bytes=_larger(self.device_peak_bytes, event.device_bytes),
            reserved_peak_bytes=_larger(self.reserved_peak_bytes, event.reserved_bytes),
        )

    def with_finding(self, event: Noticed) -> Attempt:
        """Take in a piece of evidence; the first unhandled memory failure is the suspicion."""
        if event.finding.signature == PROGRESS_AFTER and self.suspected_t is not None:
            return self._gone_on().with_finding(event)
        suspicious = is_shortage(event.finding)
        first = event.t if suspicious and self.suspected_t is None else self.suspected_t
        return replace(self, findings=(*self.findings, event.finding), suspected_t=first)

    def _gone_on(self) -> Attempt:
        """Take a step after a shortage in the log as proof that the job dealt with it."""
        findings = tuple(
            replace(found, handled=True)
            if found.witness is Witness.LOG and is_shortage(found)
            else found
            for found in self.findings
        )
        return replace(self, findings=findings, suspected_t=None)


def _sooner(old: Growth | None, new: Growth) -> Growth:
    """Keep the trend that ends first: of several ranks the first to run out counts."""
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
    limits: Limits | None = None
    state: State = State.NEW
    attempts: tuple[Attempt, ...] = ()
    signum: int | None = None
    status: Status | None = None
    reason: str = ""
    skipped_last: tuple[Skip, ...] = ()
    ended_t: float | None = None

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def rungs_tried(self) -> int:
        """How many attempts had a plan of their own; those that only went on do not count."""
        return sum(1 for attempt in self.attempts if attempt.number == 1 or attempt.steps)

    @property
    def checkpoints(self) -> tuple[tuple[Checkpoint, Plan], ...]:
        """The whole checkpoints of this run, each with the plan that it was written under."""
        kept: dict[str, tuple[Checkpoint, Plan]] = {}
        for attempt in self.attempts:
            for path in attempt.damaged:
                kept.pop(path, None)
            kept.update({found.path: (found, attempt.plan) for found in attempt.checkpoints})
        return tuple(kept.values())

    def with_last(self, attempt: Attempt, state: State | None = None) -> RunRecord:
        """Put another version of the newest attempt in its place."""
        return replace(self, attempts=(*self.attempts[:-1], attempt), state=state or self.state)

    def apply(self, event: Event) -> RunRecord:
        """Give the record after one more event."""
        name = "_" + _NAMES[type(event)] if type(event) in _NAMES else ""
        handler = getattr(self, name, None)
        result: RunRecord = handler(event) if handler else self
        return result

    def _run_started(self, event: RunStarted) -> RunRecord:
        return replace(
            self,
            run=event.run,
            version=event.version,
            at=event.at,
            job=event.job,
            start=event.start,
            limits=event.limits,
        )

    def _resumed(self, event: Resumed) -> RunRecord:
        limits = self.limits
        if limits is not None and event.grace_s is not None:
            limits = replace(limits, grace_s=event.grace_s)
        going_on = replace(
            self,
            limits=limits,
            signum=None,
            status=None,
            reason="",
            skipped_last=(),
            ended_t=None,
        )
        if not self.attempts:
            return replace(going_on, state=State.NEW)
        ended = self.last.verdict is not None
        return replace(going_on, state=State.WAITING if ended else State.RUNNING)

    def _planned(self, event: Planned) -> RunRecord:
        attempt = Attempt(
            number=event.attempt,
            plan=event.plan,
            steps=event.steps,
            skipped=event.skipped,
            begins=event.begins,
            purpose=event.purpose,
            path=event.path,
        )
        return replace(self, attempts=(*self.attempts, attempt), state=State.RUNNING)

    def _started(self, event: Started) -> RunRecord:
        return self.with_last(
            replace(
                self.last,
                started_t=event.t,
                command=event.command,
                kernel_watched=event.kernel_watched,
            )
        )

    def _progress(self, event: Progress) -> RunRecord:
        return self.with_last(self.last.with_progress(event))

    def _noticed(self, event: Noticed) -> RunRecord:
        return self.with_last(self.last.with_finding(event))

    def _growing(self, event: Growing) -> RunRecord:
        return self.with_last(replace(self.last, growth=_sooner(self.last.growth, event.growth)))

    def _saved(self, event: Saved) -> RunRecord:
        saved = (*self.last.saved, event.checkpoint.step)
        return self.with_last(replace(self.last, saved=saved))

    def _stopping(self, event: Stopping) -> RunRecord:
        return self.with_last(replace(self.last, stopped=event.reason), State.STOPPING)

    def _exited(self, event: Exited) -> RunRecord:
        ended = replace(
            self.last, ended_t=event.t, returncode=event.returncode, verdict=event.verdict
        )
        return self.with_last(ended, State.WAITING)

    def _cut_short(self, event: CutShort) -> RunRecord:
        ended_t = event.t if self.last.ended_t is None else self.last.ended_t
        return self.with_last(
            replace(self.last, ended_t=ended_t, verdict=event.verdict), State.WAITING
        )

    def _device_free(self, event: DeviceFree) -> RunRecord:
        return self.with_last(
            replace(self.last, checkpoints=event.checkpoints, damaged=event.damaged)
        )

    def _signalled(self, event: Signalled) -> RunRecord:
        return replace(self, signum=self.signum or event.signum)

    def _finished(self, event: Finished) -> RunRecord:
        return replace(
            self,
            state=State.DONE,
            status=event.status,
            reason=event.reason,
            skipped_last=event.skipped,
            ended_t=event.t,
        )


def begun(record: RunRecord) -> tuple[Job, Limits]:
    """Give the job and the limits of a run that was started."""
    if record.job is None or record.limits is None:
        raise AssertionError("the first event names job and limits")
    return record.job, record.limits


def replay(events: Iterable[Event]) -> RunRecord:
    """Fold events into a record."""
    record = RunRecord()
    for event in events:
        record = record.apply(event)
    return record
