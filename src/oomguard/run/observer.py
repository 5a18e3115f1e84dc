"""Turn what is seen of one attempt (output, reports, kernel counters) into events of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from oomguard.evidence.case import TRAINED
from oomguard.evidence.log import LogScanner
from oomguard.evidence.verdict import Finding, Kind, Phase, Witness
from oomguard.process.messages import (
    AnyReport,
    ByeReport,
    DeviceMemory,
    ErrorReport,
    Kernel,
    LossReport,
    NoSplitReport,
    OomReport,
    Output,
    PhaseReport,
    ProbeReport,
    ProcessMemory,
    Report,
    ShellEvent,
    SplitReport,
    StepReport,
    TrainedReport,
    TrainingReport,
    Window,
)
from oomguard.run.events import (
    Counted,
    Event,
    Growing,
    Noticed,
    NotSplit,
    Probed,
    Progress,
    Split,
)
from oomguard.run.leak import CONTEXT_BYTES, LeakDetector
from oomguard.run.printed_loss import LossEnds, LossReader
from oomguard.run.ranks import Ranks

#: Most findings recorded from a log: a job that prints errors forever must not fill the disk.
MOST_FINDINGS = 60
#: Windows recorded of a process: the first ones, then those with other samples than the last.
FIRST_WINDOWS, MOST_WINDOWS = 2, 12
#: Seconds between two recorded progress events of one process, after its first steps.
PROGRESS_EVERY_S = 0.5
FIRST_STEPS = 3


class Observer:
    """Follows one attempt: its log, the monitor's reports, the kernel's counters.

    `begin` is the start of the run in seconds of time.monotonic(). `data_limit_bytes` caps the
    private data of each process, `gpu_limit_bytes` what each process reserves on each GPU.
    """

    def __init__(
        self,
        attempt: int,
        *,
        begin: float = 0.0,
        data_limit_bytes: int | None = None,
        gpu_limit_bytes: int | None = None,
    ) -> None:
        self._attempt, self._begin = attempt, begin
        self._leaks = LeakDetector(
            data_limit_bytes=data_limit_bytes, gpu_limit_bytes=gpu_limit_bytes
        )
        self._scanner = LogScanner()
        self._losses = LossReader()
        self._from_log = 0
        self._peeked = True
        self._windows: dict[int, tuple[int, Window]] = {}
        self._last: dict[int, tuple[float, int, Phase]] = {}
        self._caught: dict[int, Finding] = {}
        self._aborted: set[int] = set()
        self.ranks = Ranks()
        self._phase = Phase.UNKNOWN

    def take(self, seen: ShellEvent, t: float) -> Iterator[Event]:
        """Yield the events that follow from what was seen, at time `t` of the run."""
        match seen:
            case Output():
                self._peeked = False
                self._losses.feed(seen.data)
                yield from self._notice(self._scanner.feed(seen.data), t)
            case Kernel():
                yield from self._notice([_from_kernel(seen, self._phase)], t)
            case Report():
                yield from self._report(seen.report, t)

    def wait(self, t: float) -> Iterator[Event]:
        """Yield what silence adds: an incomplete error message in the log may be the last one."""
        if not self._peeked:
            self._peeked = True
            yield from self._notice(self._scanner.peek(), t)

    def close(self, t: float, *, well: bool) -> Iterator[Event]:
        """Yield what the exit adds: the rest of the log, and errors that were caught.

        `well` if the job exited with 0: then they were handled, unless one ended the training loop.
        """
        caught = [
            replace(finding, handled=well and pid not in self._aborted)
            for pid, finding in self._caught.items()
        ]
        self._losses.close()
        yield from self._notice([*self._scanner.close(), *caught], t)

    @property
    def loss(self) -> LossEnds | None:
        """The first and the last loss that the job printed."""
        return self._losses.ends

    def _notice(self, findings: list[Finding], t: float) -> Iterator[Event]:
        for finding in findings:
            if finding.witness is Witness.LOG:
                self._from_log += 1
            if finding.witness is not Witness.LOG or self._from_log <= MOST_FINDINGS:
                yield Noticed(t=t, attempt=self._attempt, finding=finding)

    def _report(self, report: AnyReport, t: float) -> Iterator[Event]:  # noqa: C901  a case for each kind
        progress = self._progress(report, t)
        self._phase = report.phase
        self.ranks.take(report)
        match report:
            case OomReport(uncaught=False):
                self._caught[report.pid] = self._finding(report)
                yield progress
            case OomReport() | ErrorReport():
                self._caught.pop(report.pid, None)
                yield progress
                yield from self._notice([self._finding(report)], t)
            case TrainedReport(completed=False):
                self._aborted.add(report.pid)
                yield progress
            case TrainedReport():
                self._aborted.discard(report.pid)
                yield progress
                yield from self._notice([_trained(report)], t)
            case TrainingReport() | LossReport():
                yield from self._counted(report, t)
            case ProbeReport():
                yield progress
                yield Probed(
                    t=t, attempt=self._attempt, pid=report.pid, rank=report.rank,
                    longest=report.longest,
                )  # fmt: skip
            case SplitReport():
                yield progress
                yield from self._answered(report, t)
            case NoSplitReport():
                yield NotSplit(
                    t=t, attempt=self._attempt, rank=report.rank, reason=report.reason,
                    width=report.width,
                )  # fmt: skip
            case _:
                growth = self._leaks.update(report) if isinstance(report, StepReport) else None
                if growth is not None:
                    yield Growing(t=t, attempt=self._attempt, rank=report.rank, growth=growth)
                if isinstance(report, StepReport):
                    yield from self._counted(report, t)
                if self._is_news(progress) or isinstance(report, ByeReport):
                    yield progress
                    yield from self._mark_handled(progress)

    def _counted(
        self, report: StepReport | TrainingReport | LossReport, t: float
    ) -> Iterator[Event]:
        """Yield what was counted, unless it repeats the last window of the process."""
        window = report.window if isinstance(report, StepReport) else None
        if isinstance(report, StepReport):
            if window is None:
                return
            count, before = self._windows.get(report.pid, (0, None))
            again = before is not None and _samples(before) == _samples(window)
            if count >= MOST_WINDOWS or (again and count >= FIRST_WINDOWS):
                return
            self._windows[report.pid] = (count + 1, window)
        yield Counted(
            t=t,
            attempt=self._attempt,
            pid=report.pid,
            rank=report.rank,
            world=report.world,
            step=report.step,
            window=window,
            training=report if isinstance(report, TrainingReport) else None,
            loss=report if isinstance(report, LossReport) else None,
        )

    def _answered(self, report: SplitReport, t: float) -> Iterator[Event]:
        """Yield a split step; the error that it answers was caught, and is handled."""
        caught = self._caught.pop(report.pid, None) if report.failed else None
        if caught is not None:
            yield from self._notice([replace(caught, handled=True)], t)
        spans = report.spans
        yield Split(
            t=t, attempt=self._attempt, pid=report.pid, rank=report.rank,
            step=spans[-1][1] if spans else report.step + 1, steps=report.steps,
            failed=report.failed, parts=report.parts, rows=report.rows, width=report.width,
            tokens=report.tokens, seconds=round(report.seconds, 3), spans=spans,
            refused=report.refused, evaluation=report.evaluation, timing=report.timing,
        )  # fmt: skip

    def _finding(self, report: OomReport | ErrorReport) -> Finding:
        finding = Finding(
            witness=Witness.INSIDE,
            kind=Kind.NOT_OOM,
            text=f"{report.exception or 'error'}: {report.message}".strip(),
            phase=report.phase,
            signature=report.exception,
            rank=report.rank,
            step=report.step,
            helper=self.ranks.is_helper(report.pid, report.rank),
        )
        if isinstance(report, ErrorReport):
            return finding
        cuda = report.memory.cuda if report.memory else ()
        pinned = "pin_memory" in " ".join(report.frames)
        kind = Kind.DEVICE_OOM if report.device == "cuda" else Kind.HOST_OOM
        return replace(
            finding,
            kind=Kind.PINNED_OOM if pinned else kind,
            cause=self._leaks.cause(report),
            requested_bytes=report.requested_bytes,
            capacity_bytes=report.capacity_bytes,
            # Which of several GPUs was full is not reported: on none was there less than this.
            data_bytes=report.memory.data_bytes if report.memory else None,
            allocated_bytes=min((card.allocated_bytes or 0 for card in cuda), default=None),
            phase_known=report.phase_known,
            batch=max((report.shapes or {}).values(), key=math.prod, default=None),
        )

    def _mark_handled(self, progress: Progress) -> Iterator[Event]:
        """Mark a caught error as handled once its process finishes another step."""
        caught = self._caught.get(progress.pid)
        if caught is not None and progress.step > (caught.step or 0):
            del self._caught[progress.pid]
            yield from self._notice([replace(caught, handled=True)], progress.t)

    def _is_news(self, progress: Progress) -> bool:
        before = self._last.get(progress.pid)
        fresh = (
            before is None
            or progress.pid in self._caught
            or (progress.step <= FIRST_STEPS and progress.step != before[1])
            or (progress.phase is not before[2] and progress.phase in (Phase.EVAL, Phase.SAVE))
            or progress.loaded_bytes is not None
            or progress.t - before[0] >= PROGRESS_EVERY_S
        )
        if fresh:
            self._last[progress.pid] = (progress.t, progress.step, progress.phase)
        return fresh

    def _progress(self, report: AnyReport, t: float) -> Progress:
        memory = memory_of(report)
        cuda = memory.cuda if memory else ()
        begins = isinstance(report, PhaseReport) and report.phase is Phase.FORWARD
        loaded = [card.allocated_bytes or 0 for card in cuda] if begins and not report.step else []
        return Progress(
            t=t,
            attempt=self._attempt,
            pid=report.pid,
            rank=report.rank,
            step=report.step,
            phase=report.phase,
            host_bytes=memory.peak_rss_bytes if memory else None,
            data_bytes=_largest((memory.data_bytes, memory.peak_data_bytes)) if memory else None,
            device_bytes=_largest(card.peak_allocated_bytes for card in cuda),
            reserved_bytes=_largest(card.peak_reserved_bytes for card in cuda),
            loaded_bytes=_largest(loaded),
            context_bytes=_largest(filter(None, map(_context, cuda))),
            caught=isinstance(report, OomReport) and not report.uncaught,
            said_t=round(min(t, report.t - self._begin), 4),
        )


def _trained(report: TrainedReport) -> Finding:
    return Finding(
        witness=Witness.INSIDE, kind=Kind.OK, text="the training loop returned", signature=TRAINED,
        rank=report.rank, step=report.step,
    )  # fmt: skip


def _samples(window: Window) -> tuple[int | None, bool]:
    return window.samples, window.short


def memory_of(report: AnyReport) -> ProcessMemory | None:
    """Return what a report measured, None where its kind measures nothing."""
    match report:
        case StepReport() | PhaseReport() | OomReport() | ProbeReport() | ByeReport():
            return report.memory
    return None


def _largest(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _context(card: DeviceMemory) -> int | None:
    """Return the bytes of the CUDA context; None if another process is on the GPU as well."""
    beyond = card.beyond_reserved_bytes
    return None if beyond is None or beyond > CONTEXT_BYTES else beyond


def _from_kernel(seen: Kernel, phase: Phase) -> Finding:
    """Return the finding for a kill. A killed process reports nothing; `phase` is the last one."""
    text = f"the kernel's OOM killer ended {seen.oom_kills} process(es) of the job's memory cgroup"
    return Finding(
        witness=Witness.KERNEL,
        kind=Kind.HOST_OOM,
        text=text,
        signature="oom_kill",
        phase=phase,
        phase_known=phase not in (Phase.LAUNCH, Phase.LOAD),
    )
