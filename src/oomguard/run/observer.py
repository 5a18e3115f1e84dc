"""What the shell sees of one attempt, as events of the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from oomguard.evidence.log import LogScanner
from oomguard.evidence.verdict import Finding, Kind, Phase, Witness
from oomguard.process.process_events import Kernel, Output, Report, ShellEvent
from oomguard.run.events import Event, Growing, Noticed, Probed, Progress
from oomguard.run.trends import Trends

#: Findings of the log at most: a job that prints errors without end fills no disk with them.
MOST_FINDINGS = 60
#: Seconds between two recorded progress events of one process, beyond its first steps.
PROGRESS_EVERY_S = 0.5
FIRST_STEPS = 3


class Observer:
    """Follows one attempt: its log, its own reports, the kernel's counters.

    `begin` is when the run began, on the clock of the reports (seconds); `data_limit_bytes`
    caps the private data of each process, `gpu_limit_bytes` what it has on each GPU.
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
        self._trends = Trends(data_limit_bytes=data_limit_bytes, gpu_limit_bytes=gpu_limit_bytes)
        self._scanner = LogScanner()
        self._noticed = 0
        self._peeked = True
        self._last: dict[int, tuple[float, int, Phase]] = {}
        self._caught: dict[int, Finding] = {}
        self._phase = Phase.UNKNOWN

    def take(self, seen: ShellEvent, t: float) -> Iterator[Event]:
        """Yield the events that one piece of news adds up to, at time `t`."""
        match seen:
            case Output():
                self._peeked = False
                yield from self._notice(self._scanner.feed(seen.data), t)
            case Kernel():
                yield from self._notice([_from_kernel(seen, self._phase)], t)
            case Report():
                yield from self._report(seen.message, t)

    def wait(self, t: float) -> Iterator[Event]:
        """Yield what a silence adds: a message that is not complete may be the last one."""
        if not self._peeked:
            self._peeked = True
            yield from self._notice(self._scanner.peek(), t)

    def close(self, t: float, *, well: bool) -> Iterator[Event]:
        """Yield what the end adds: the rest of the log, and errors that were caught.

        `well` says that the job ended well: then they were dealt with.
        """
        caught = [replace(finding, handled=well) for finding in self._caught.values()]
        yield from self._notice([*self._scanner.close(), *caught], t)

    def _notice(self, findings: list[Finding], t: float) -> Iterator[Event]:
        for finding in findings:
            if finding.witness is Witness.LOG:
                self._noticed += 1
            if finding.witness is not Witness.LOG or self._noticed <= MOST_FINDINGS:
                yield Noticed(t=t, attempt=self._attempt, finding=finding)

    def _report(self, message: Mapping[str, Any], t: float) -> Iterator[Event]:
        progress = replace(_progress(message, self._attempt, t), said_t=self._said_t(message, t))
        kind, pid = message.get("type"), progress.pid
        self._phase = progress.phase
        growth = self._trends.take(message)
        if growth is not None:
            yield Growing(t=t, attempt=self._attempt, rank=progress.rank, growth=growth)
        if kind == "oom" and message.get("uncaught") is False:
            self._caught[pid] = self._finding(message)
            yield progress
        elif kind in ("oom", "error"):
            self._caught.pop(pid, None)
            yield progress
            yield from self._notice([self._finding(message)], t)
        elif kind == "probe":
            yield progress
            yield Probed(
                t=t, attempt=self._attempt, pid=pid, rank=progress.rank,
                longest=message.get("longest"),
            )  # fmt: skip
        elif kind == "bye" or self._is_news(progress):
            yield progress
            yield from self._went_on(progress)

    def _finding(self, message: Mapping[str, Any]) -> Finding:
        return replace(_from_inside(message), cause=self._trends.cause(message))

    def _said_t(self, message: Mapping[str, Any], t: float) -> float | None:
        said = message.get("t")
        return None if said is None else round(min(t, said - self._begin), 4)

    def _went_on(self, progress: Progress) -> Iterator[Event]:
        """Take another step as proof that an error was caught and dealt with."""
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


def _from_kernel(seen: Kernel, phase: Phase) -> Finding:
    """Make the finding of a kill; who was killed says nothing, `phase` is what was said last."""
    text = f"the kernel's OOM killer ended {seen.oom_kills} process(es) of the job's memory cgroup"
    return Finding(
        witness=Witness.KERNEL, kind=Kind.HOST_OOM, text=text, signature="oom_kill", phase=phase
    )


def _from_inside(message: Mapping[str, Any]) -> Finding:
    text = f"{message.get('exception') or 'error'}: {message.get('message') or ''}".strip()
    return Finding(
        witness=Witness.INSIDE,
        kind=_kind(message),
        text=text,
        phase=phase_of(message),
        signature=str(message.get("exception")),
        rank=message.get("rank"),
        step=message.get("step"),
        requested_bytes=message.get("requested_bytes"),
        capacity_bytes=message.get("capacity_bytes"),
    )


def _kind(message: Mapping[str, Any]) -> Kind:
    if message.get("type") == "error":
        return Kind.NOT_OOM
    frames = " ".join(str(frame) for frame in message.get("frames") or ())
    if "pin_memory" in frames:
        return Kind.PINNED_OOM
    return Kind.DEVICE_OOM if message.get("device") == "cuda" else Kind.HOST_OOM


def phase_of(message: Mapping[str, object]) -> Phase:
    """Read the phase in a report."""
    try:
        return Phase(message.get("phase"))
    except ValueError:
        return Phase.UNKNOWN


def _progress(message: Mapping[str, Any], attempt: int, t: float) -> Progress:
    memory: Mapping[str, Any] = message.get("memory") or {}
    cuda = memory.get("cuda") or []
    return Progress(
        t=t,
        attempt=attempt,
        pid=int(message.get("pid") or 0),
        rank=message.get("rank"),
        step=int(message.get("step") or 0),
        phase=phase_of(message),
        host_bytes=memory.get("peak_rss_bytes"),
        device_bytes=max((card["peak_allocated_bytes"] for card in cuda), default=None),
        reserved_bytes=max((card["peak_reserved_bytes"] for card in cuda), default=None),
        loaded_bytes=max(map(_allocated, cuda), default=None) if _begins(message) else None,
        context_bytes=max(filter(None, map(_outside, cuda)), default=None),
        caught=message.get("type") == "oom" and message.get("uncaught") is False,
    )


def _begins(message: Mapping[str, Any]) -> bool:
    """Return whether this is the report of a first forward pass that begins."""
    is_forward = message.get("type") == "phase" and message.get("phase") == Phase.FORWARD.value
    return is_forward and not message.get("step")


def _allocated(card: Mapping[str, int | None]) -> int:
    return card.get("allocated_bytes") or 0


def _outside(card: Mapping[str, int | None]) -> int | None:
    """Return what is in use on a card and not reserved: by this process, if it is alone there."""
    free, total = card.get("free_bytes"), card.get("total_bytes")
    if free is None or total is None:
        return None
    return total - free - (card.get("reserved_bytes") or 0)
