"""The nouns of a failure: what was found, and what is concluded from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """What ended the job."""

    DEVICE_OOM = "device_oom"
    HOST_OOM = "host_oom"
    SHM_OOM = "shm_oom"  # /dev/shm, not RAM
    PINNED_OOM = "pinned_oom"  # page-locked host memory
    NOT_OOM = "not_oom"
    INTERRUPTED = "interrupted"
    OK = "ok"
    UNKNOWN = "unknown"  # nothing shows what ended it

    @property
    def is_memory(self) -> bool:
        """Return whether the ladder may answer it."""
        return self in OOMS

    @property
    def is_other_failure(self) -> bool:
        """Return whether the job failed and nothing shows that memory was the reason."""
        return self in (Kind.NOT_OOM, Kind.UNKNOWN)


#: The kinds that the ladder may answer, as they are called.
OOMS = {
    Kind.DEVICE_OOM: "GPU OOM",
    Kind.HOST_OOM: "host OOM",
    Kind.SHM_OOM: "shared-memory OOM",
    Kind.PINNED_OOM: "pinned-memory OOM",
}


class Cause(str, Enum):
    """Why memory ran out."""

    CAPACITY = "capacity"  # the job needs more than there is
    FRAGMENTATION = "fragmentation"  # enough is reserved, no block is large enough
    GROWTH = "growth"  # rises step by step at equal shapes
    OUTLIER = "outlier"  # one batch far larger than the others
    OTHER_PROCESS = "other_process"  # somebody else holds the memory
    UNKNOWN = "unknown"


class Phase(str, Enum):
    """What the job was doing."""

    LAUNCH = "launch"
    LOAD = "load"
    PREPROCESS = "preprocess"  # a pass over the data set
    BATCH = "batch"  # a batch is fetched and collated, here or in a loader's worker
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVAL = "eval"
    SAVE = "save"
    UNKNOWN = "unknown"


class Witness(str, Enum):
    """Who says so, the most trustworthy first."""

    INSIDE = "inside"  # the job's own process
    KERNEL = "kernel"  # a cgroup's counters, NVML
    LOG = "log"  # text that the job printed
    EXIT = "exit"  # the exit code


class Confidence(str, Enum):
    """How sure a verdict is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One piece of evidence, in the order in which it was seen.

    `text` is the line or message it rests on, `signature` the name of the rule that matched,
    `line` its number in the log (from 1), `handled` says that the job caught it and went on.
    `allocated_bytes` is what its process held at least on the GPU when the allocation failed,
    `data_bytes` its private data then.
    `helper` says that it is about a process beside the ranks, whose failure the job may deal with.
    `phase_known` is False where the phase is only what a job is taken to do by default. `batch` is
    the shape of the largest tensor of the batch that was processed.
    """

    witness: Witness
    kind: Kind
    text: str
    cause: Cause = Cause.UNKNOWN
    phase: Phase = Phase.UNKNOWN
    signature: str | None = None
    line: int | None = None
    rank: int | None = None
    step: int | None = None
    requested_bytes: int | None = None
    capacity_bytes: int | None = None
    allocated_bytes: int | None = None
    data_bytes: int | None = None
    confidence: Confidence = Confidence.HIGH
    handled: bool = False
    helper: bool = False
    phase_known: bool = True
    batch: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What ended the job, and the findings it rests on (the root first).

    `phase_known` is False where nothing showed the phase: it is the default, and rules nothing out.
    """

    kind: Kind
    cause: Cause = Cause.UNKNOWN
    phase: Phase = Phase.UNKNOWN
    rank: int | None = None
    step: int | None = None
    requested_bytes: int | None = None
    capacity_bytes: int | None = None
    root: str | None = None
    confidence: Confidence = Confidence.LOW
    evidence: tuple[Finding, ...] = ()
    phase_known: bool = True
