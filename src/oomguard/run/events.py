"""What can happen in a run: the events that events.jsonl holds, and the values in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from oomguard.evidence.verdict import Finding, Phase, Verdict
from oomguard.job.checkpoint import Checkpoint
from oomguard.job.plan import Plan
from oomguard.job.provenance import DataFingerprint, Environment
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Fidelity, Skip, Untried
from oomguard.process.messages import LossReport, StepTimes, TrainingReport, Window
from oomguard.run.attempt import AttemptSpec, StopReason, Weighed, flat, nested
from oomguard.run.leak import Growth
from oomguard.run.printed_loss import LossEnds
from oomguard.run.splits import BOUND, STRATEGY, Span

#: Default grace period to write a checkpoint.
GRACE_S = 30.0


class Status(str, Enum):
    """How a run ended."""

    FIT = "fit"  # trained to completion
    EXHAUSTED = "exhausted"  # no strategy or no attempt is left
    FAILED = "failed"  # for a reason other than memory
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The options of a run: which strategies, at which fidelity, how many attempts, which caps.

    `relax` reverts changes that turn out to be unnecessary. `grow` starts with the smallest sizes
    and grows to the largest that fit. `probe` tries each plan on the longest batches first.
    `in_place` runs a step that runs out of memory again in smaller parts, without a relaunch.
    `grace_s` is how long the job may take to write a checkpoint when oomguard is asked to stop,
    `strategies` the absolute path of the user's own strategies, `inside` whether the monitor runs.
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
    probe: bool = False
    grace_s: float = GRACE_S
    strategies: str | None = None
    inside: bool = True
    in_place: bool = False

    @property
    def splits(self) -> bool:
        """Return whether a step that runs out of memory may run again in smaller parts.

        It is a way to halve the micro batch or to bound tokens, so the ladder has to have one of
        these. `grow` looks for the largest that fits whole.
        """
        listed = STRATEGY in self.ladder or BOUND in self.ladder
        return self.in_place and self.inside and not self.grow and listed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """Something that happened, `t` seconds after the start of the run."""

    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where to begin instead of at the requested config, and why."""

    spec: AttemptSpec
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The peak that was predicted for a plan, in bytes on each GPU; see `MemoryEstimate`.

    `terms` add up to `expected_bytes`; `corrected_by` has the factor by which earlier measurements
    on the same GPU corrected a term. `covers_all` says that nothing of the job is left out of it.
    """

    plan: Plan
    allocated_bytes: int
    reserved_bytes: int
    expected_bytes: int
    method: str
    terms: Mapping[str, int] = field(default_factory=dict)
    corrected_by: Mapping[str, float] = field(default_factory=dict)
    covers_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRef:
    """Where later runs of the same job look up this one: in a history database.

    `index` is its file and `key` identifies the job on its device. Measurements apply to `device`,
    `versions` and `model`; `device` is None if nothing was predicted for a known GPU.
    """

    index: str
    key: str
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(_Event):
    """The first event: what was asked, by which version, at which time of day (ISO 8601, UTC).

    `masked` says that secrets in the job are masked, and `job.json` holds it as it was asked.
    `predicted` holds a peak for each plan that was predicted. `folder` is the run folder;
    `environment` and `data` are what the run was made of.
    """

    run: str
    version: str
    at: str
    job: Job
    limits: Limits
    masked: bool = False
    start: Start | None = None
    predicted: tuple[Predicted, ...] = ()
    lessons: HistoryRef | None = None
    folder: str = ""
    environment: Environment | None = None
    data: DataFingerprint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(_Event):
    """Another supervisor took the run over, `at` this time of day; `t` went on without the gap.

    `cut_bytes` is how much of an incomplete last event was dropped; `grace_s` is from now on what
    the job gets, where it was given anew. `environment` and `data` are those from now on.
    """

    version: str
    at: str
    cut_bytes: int = 0
    grace_s: float | None = None
    environment: Environment | None = None
    data: DataFingerprint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(_Event):
    """An attempt was decided on.

    `mark` is in the environment of all its processes; `before` are the checkpoints that lay there
    already, each with the time of its newest change (ns), None where that is not known.
    """

    attempt: int
    mark: str = ""
    before: Mapping[str, int] | None = None
    spec: AttemptSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    """The attempt's process exists; `kernel_watched` says whether OOM kills would be seen.

    `cgroup` is the folder of the memory cgroup of its own, where it has one.
    """

    attempt: int
    pid: int
    command: str
    kernel_watched: bool
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(_Event):
    """What a process of the job said of itself; bytes are peaks so far.

    `data_bytes` is private data, which a limit on each process counts. `loaded_bytes` are allocated
    on the device when the first forward pass begins, and
    `context_bytes` in use on it beside what the allocator reserved; None in other reports.
    `caught` says that an out-of-memory error passes through it, which it may yet catch.
    `said_t` is when it said so: on its way the report may have been overtaken by the log.
    """

    attempt: int
    pid: int
    rank: int | None
    step: int
    phase: Phase
    host_bytes: int | None = None
    data_bytes: int | None = None
    device_bytes: int | None = None
    reserved_bytes: int | None = None
    loaded_bytes: int | None = None
    context_bytes: int | None = None
    caught: bool = False
    said_t: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(_Event):
    """A process counted an optimizer step, or reported its training or its first loss.

    `step` is that of the window; each of the reports is None where the event is of another one.
    """

    attempt: int
    pid: int
    rank: int | None
    world: int | None
    step: int
    window: Window | None = None
    training: TrainingReport | None = None
    loss: LossReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(_Event):
    """A process of a probe has taken its steps and ends; `longest` is its longest row, in tokens.

    `longest` is None where its batches hold no tokens that are known here.
    """

    attempt: int
    pid: int
    rank: int | None
    longest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(_Event):
    """A process of the job ran optimizer steps in smaller parts: `steps`, and `step` is the last.

    `spans` are the first and the last of successive ones; a log of an older version has none.
    `failed` counts the out-of-memory errors that this answered, `seconds` is what they cost.
    `rows` x `width` is the part of the widest row, `tokens` its whole batch with padding;
    `refused` are the fewest tokens that ran out of memory. With `evaluation` it was a batch of an
    evaluation before that step. `timing` has how long steps of this process took so far.
    """

    attempt: int
    pid: int
    rank: int | None
    step: int
    steps: int
    failed: int
    parts: int
    rows: int
    width: int
    tokens: int
    seconds: float
    spans: tuple[Span, ...] = ()
    refused: int = 0
    evaluation: bool = False
    timing: StepTimes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSplit(_Event):
    """Why an out-of-memory error in a training step is not answered by smaller parts.

    `width` is that of a single row that does not fit, None for another reason.
    """

    attempt: int
    rank: int | None
    reason: str
    width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed(_Event):
    """A piece of evidence about a failure."""

    attempt: int
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing(_Event):
    """Memory rises from step to step in a process of the job."""

    attempt: int
    rank: int | None
    growth: Growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(_Event):
    """The attempt has written a whole checkpoint and goes on."""

    attempt: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(_Event):
    """oomguard is stopping the attempt; `weighed` are the figures, where a restart is worth it."""

    attempt: int
    reason: StopReason
    weighed: Weighed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftRunning(_Event):
    """The attempt's command has exited with 0, but processes that it started may still train."""

    attempt: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited(_Event):
    """The attempt's process ended; `verdict` is what is concluded from all that was seen.

    `returncode` is None where nobody was there to see it; `log_error` says why its log ends early,
    None if it does not. `loss` is what it printed first and last.
    """

    attempt: int
    returncode: int | None
    verdict: Verdict
    log_error: str | None = None
    loss: LossEnds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutShort(_Event):
    """The attempt ended with its supervisor, or by a signal to it: its plan is not at fault."""

    attempt: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Signalled(_Event):
    """oomguard itself was asked to stop."""

    signum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFree(_Event):
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
class Ticked(_Event):
    """Time passed; never recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(_Event):
    """The run ended; `untried` is what its options ruled out where all strategies are exhausted."""

    status: Status
    reason: str
    skipped: tuple[Skip, ...] = ()
    untried: tuple[Untried, ...] = ()


#: Every kind of event. A new one needs a line in `_KINDS` and a case in `RunRecord.apply`.
Event = (
    RunStarted
    | Resumed
    | Planned
    | Started
    | Progress
    | Counted
    | Noticed
    | Probed
    | Split
    | NotSplit
    | Growing
    | Saved
    | Stopping
    | LeftRunning
    | Exited
    | CutShort
    | Signalled
    | DeviceFree
    | Finished
    | Ticked
)

_KINDS: dict[str, type[Event]] = {
    "run_started": RunStarted,
    "resumed": Resumed,
    "planned": Planned,
    "started": Started,
    "progress": Progress,
    "noticed": Noticed,
    "probed": Probed,
    "counted": Counted,
    "split": Split,
    "not_split": NotSplit,
    "growing": Growing,
    "saved": Saved,
    "stopping": Stopping,
    "left_running": LeftRunning,
    "exited": Exited,
    "cut_short": CutShort,
    "signalled": Signalled,
    "device_free": DeviceFree,
    "finished": Finished,
}
NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_json(event: Event) -> dict[str, object]:
    """Return an event as a JSON object; `event` names its kind, an attempt's spec is flat in it."""
    document = msgspec.to_builtins(event, order="deterministic")
    if isinstance(event, Planned):
        document = flat(document)
    if isinstance(event, RunStarted) and event.start is not None:
        document["start"] = flat(document["start"])
    return {"event": NAMES[type(event)], **document}


def is_event(document: Mapping[str, object]) -> bool:
    """Return whether a document names an event of this version, or none at all."""
    name = document.get("event")
    return not isinstance(name, str) or name in _KINDS


def event_from_json(document: Mapping[str, object]) -> Event:
    """Read back what `event_to_json` gave.

    Raises:
        ValueError: if the document is not an event of this version.
    """
    kind = _KINDS.get(str(document.get("event")))
    if kind is None:
        raise ValueError(f"unknown event {document.get('event')!r}")
    body = {name: value for name, value in document.items() if name != "event"}
    if kind is Planned:
        body = nested(body)
    if isinstance(start := body.get("start"), dict):
        body["start"] = nested(start)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
