"""What happens to an attempt, as emitted to the supervisor; the monitor's reports, validated.

docs/monitor-protocol.md describes the reports. A line that breaks it is refused as a whole.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from oomguard.evidence.verdict import Phase
from oomguard.redact import Known, redact_document
from oomguard.secret_shapes import may_hide

LINE_BYTES = 64 << 10  # longest line of the protocol, without its newline

_MOST = (1 << 63) - 1  # what JSON as it is written here can hold
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Signed = Annotated[int, Meta(ge=-_MOST, le=_MOST)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]  # finite
Shapes = Mapping[str, tuple[Count, ...]]


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """What the allocator of one process holds on one GPU; free and total are of the whole GPU."""

    device: Count
    allocated_bytes: Count | None
    reserved_bytes: Count | None
    peak_allocated_bytes: Count | None
    peak_reserved_bytes: Count | None
    free_bytes: Count | None
    total_bytes: Count | None

    @property
    def beyond_reserved_bytes(self) -> int | None:
        """Return the bytes in use on the GPU beyond what this process reserved."""
        if self.free_bytes is None or self.total_bytes is None:
            return None
        return self.total_bytes - self.free_bytes - (self.reserved_bytes or 0)


class ProcessMemory(Struct, frozen=True, kw_only=True):
    """Memory of one process. `data_bytes` is private data, as RLIMIT_DATA counts it."""

    rss_bytes: Count | None
    peak_rss_bytes: Count | None
    data_bytes: Count | None = None
    peak_data_bytes: Count | None = None
    cuda: tuple[DeviceMemory, ...]


class MonitorReport(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields of every report. `t` is time.monotonic() in seconds, `step` counts finished steps."""

    v: Literal[1]
    pid: Count
    rank: Signed | None
    local_rank: Signed | None
    world: Signed | None
    t: Number
    phase: Phase
    step: Count


class HelloReport(MonitorReport, frozen=True, kw_only=True, tag="hello"):
    """torch was imported."""

    argv0: str | None
    python: str
    torch: str | None
    ppid: Signed


CountedBy = Literal["trainer", "loader", "forward", "rows"]


class Window(Struct, frozen=True, kw_only=True):
    """What one optimizer step of a process was made of; null is not known.

    `short` says that the data ended in it, so that it may hold fewer samples than the others.
    `unclear` is the reason why the samples are not counted.
    """

    samples: Count | None
    micro_batches: Count
    label_tokens: Count | None
    label_sum: int | None
    sequences: Count | None
    learning_rate: Number | None
    short: bool
    counted_by: CountedBy | None
    unclear: str | None


class Pass(Struct, frozen=True, kw_only=True):
    """Memory before and after a backward pass: on the GPUs in use, else private data of the host.

    `elements` is the size of its batch, 0 if not known; `shapes` counts the different shapes so
    far.
    """

    shapes: Count
    elements: Count
    before_bytes: Count
    after_bytes: Count


class StepReport(MonitorReport, frozen=True, kw_only=True, tag="step"):
    """An optimizer step has finished. `shapes` are those of the largest batch since the last."""

    memory: ProcessMemory | None
    seconds: Number | None
    shapes: Shapes | None
    window: Window | None = None
    passes: tuple[Pass, ...] = ()


class TrainingReport(MonitorReport, frozen=True, kw_only=True, tag="training"):
    """The first batch of training is known, or more is known of the training; see the page."""

    samples: Count | None
    short: bool | None
    counted_by: CountedBy | None
    dataset_samples: Count | None
    batches: Count | None
    drop_last: bool | None
    total_steps: Count | None
    warmup_steps: Count | None
    accumulation: Count | None


class LossReport(MonitorReport, frozen=True, kw_only=True, tag="loss"):
    """The loss of the first optimizer step, and what makes its samples depend on each other."""

    value: Number | None
    label_sum: int | None
    couplings: tuple[str, ...]


class PhaseReport(MonitorReport, frozen=True, kw_only=True, tag="phase"):
    """A phase was entered."""

    memory: ProcessMemory | None


class OomReport(MonitorReport, frozen=True, kw_only=True, tag="oom"):
    """An out-of-memory exception. `uncaught` if it ended the process, a thread or a child.

    `phase_known` is False where the phase is only the default before training.
    """

    exception: str
    message: str
    uncaught: bool
    frames: tuple[str, ...]
    memory: ProcessMemory | None
    shapes: Shapes | None
    device: Literal["cuda", "cpu"] | None
    requested_bytes: Count | None
    capacity_bytes: Count | None
    phase_known: bool = True
    passes: tuple[Pass, ...] = ()


class ErrorReport(MonitorReport, frozen=True, kw_only=True, tag="error"):
    """Another exception ended the process, a thread or a child."""

    exception: str
    message: str
    frames: tuple[str, ...]


class ProbeReport(MonitorReport, frozen=True, kw_only=True, tag="probe"):
    """The last step of a probe has finished."""

    memory: ProcessMemory
    tokens: Count | None
    longest: Count | None


class TrainedReport(MonitorReport, frozen=True, kw_only=True, tag="trained"):
    """The training loop has ended; `completed` if it returned, not if it raised."""

    completed: bool


class StepSums(Struct, frozen=True, kw_only=True):
    """Sums over optimizer steps: of their batches, of the passes of these, tokens and seconds.

    `whole_tokens` are those of the batches with all their padding.
    """

    steps: Count
    batches: Count
    passes: Count
    tokens: Count
    whole_tokens: Count
    seconds: Number


class StepTimes(Struct, frozen=True, kw_only=True):
    """Steps of a process so far: whole, in parts, and in twice as many parts as needed."""

    whole: StepSums
    divided: StepSums
    halved: StepSums


class SplitReport(MonitorReport, frozen=True, kw_only=True, tag="split"):
    """An optimizer step passed in smaller parts: the last of `steps`, after `failed` OOMs.

    `spans` are the first and the last of successive steps among these, counted from 1; `refused`
    are the fewest tokens that ran out of memory. With `evaluation` it is a batch of an evaluation.
    """

    steps: Count
    failed: Count
    parts: Count
    rows: Count
    width: Count
    tokens: Count
    seconds: Number
    spans: tuple[tuple[Count, Count], ...] = ()
    refused: Count = 0
    evaluation: bool = False
    timing: StepTimes | None = None


class NoSplitReport(MonitorReport, frozen=True, kw_only=True, tag="no_split"):
    """Why an OOM in a training step is not answered by smaller parts."""

    reason: str
    width: Count | None


class FaultReport(MonitorReport, frozen=True, kw_only=True, tag="fault"):
    """The monitor itself failed and has removed its hooks."""

    message: str


class ByeReport(MonitorReport, frozen=True, kw_only=True, tag="bye"):
    """The interpreter is shutting down normally."""

    memory: ProcessMemory | None


AnyReport = (
    HelloReport
    | StepReport
    | TrainingReport
    | LossReport
    | PhaseReport
    | OomReport
    | ErrorReport
    | ProbeReport
    | TrainedReport
    | SplitReport
    | NoSplitReport
    | FaultReport
    | ByeReport
)
#: A backslash or a whole surrogate pair, to be kept (group 1), or half a pair.
_SURROGATE = re.compile(
    rb"(\\\\|\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2})|\\u[dD][89a-fA-F][\da-fA-F]{2}"
)
_UNMEASURED: dict[str, object] = {"rss_bytes": None, "peak_rss_bytes": None, "cuda": []}


class Lines:
    """Cuts a byte stream into lines in bounded memory; longer lines are dropped and counted."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False
        self.dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each line that `data` completes, without its newline."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line = self._extend(end)
            self._rest, self._skipping = bytearray(), False
            if line:
                yield bytes(line)
        self._extend(rest)

    def _extend(self, data: bytes) -> bytearray:
        if not self._skipping:
            self._rest += data
            if len(self._rest) > LINE_BYTES:
                self._rest, self._skipping = bytearray(), True
                self.dropped += 1
        return self._rest


def parse(line: bytes) -> AnyReport | None:
    """Return the report that a line holds, or None if it breaks the protocol.

    Unknown fields are ignored. An empty `memory` (the line would have been too long) is read as
    one in which nothing was measured.
    """
    try:
        fields: Any = json.loads(line, parse_constant=_refuse)
        if isinstance(fields, dict) and fields.get("memory") == {}:
            fields["memory"] = _UNMEASURED
        report: AnyReport = msgspec.convert(fields, AnyReport)
    except (ValueError, RecursionError):
        return None
    return report


def receive(line: bytes, known: Known = frozenset()) -> Report | None:
    """Return the event for a line, secrets masked; None if it breaks the protocol.

    Python escapes bytes of file names that are not UTF-8 as half a surrogate pair, which no file
    could store: such escapes are replaced.
    """
    line = _SURROGATE.sub(lambda found: found[1] or rb"\ufffd", line)
    report = parse(line)
    if report is not None and _may_hide(line.decode("utf-8", "replace"), known):
        fields = json.loads(line)
        masked = {name: _masked(value, known) for name, value in fields.items()}
        line = json.dumps(masked).encode()
        report = parse(line)
    return None if report is None else Report(report=report, line=line)


def _may_hide(line: str, known: Known) -> bool:
    return may_hide(line) or any(value in line for value in known)


def _masked(value: object, known: Known) -> object:
    """Mask a field of a report; sizes and shapes are no secrets."""
    return value if isinstance(value, Mapping) else redact_document(value, known)


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(constant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A chunk of output as printed, stdout and stderr merged; it may end inside a character."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report of the monitor, and the line that it came in."""

    report: AnyReport
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """OOM kills by the kernel: since the last such event, and since the start."""

    oom_kills: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExited:
    """The direct child has exited; all that it printed or reported was emitted before.

    `returncode` is negative for a signal. Other processes of the attempt may still run.
    """

    returncode: int


ShellEvent = Output | Report | Kernel | ProcessExited
Emit = Callable[[ShellEvent], None]
