"""What the line at the bottom of a terminal says of a run that goes on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oomguard.cli.plan_text import show_changes
from oomguard.evidence.verdict import Phase
from oomguard.job.plan import differences
from oomguard.process.limits import CapBy
from oomguard.run.events import Progress
from oomguard.run.state import Attempt, RunRecord
from oomguard.units import show_bytes

_BAR = 10
_FULL, _EMPTY = "█", "░"
#: What is said in place of the step while the job does something else than train.
_DOING = {
    Phase.LAUNCH: "starting",
    Phase.LOAD: "loading the model",
    Phase.PREPROCESS: "preparing the data",
    Phase.EVAL: "evaluating",
    Phase.SAVE: "saving",
}


@dataclass(slots=True)
class Pace:
    """How fast an attempt trains: its first finished step that was seen, and the last."""

    attempt: int = 0
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None

    def add(self, seen: Progress) -> None:
        """Add what a process said."""
        if seen.attempt != self.attempt:
            self.attempt, self.first, self.last = seen.attempt, None, None
        if seen.step and (self.last is None or seen.step > self.last[0]):
            self.last = (seen.step, seen.t)
            self.first = self.first or self.last

    @property
    def steps_per_second(self) -> float | None:
        """Return the mean over all steps that were seen."""
        if self.first is None or self.last is None or self.last[1] <= self.first[1]:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])


def live_text(record: RunRecord, pace: Pace, width: int) -> str:
    """Return the line for the attempt that runs, at most `width` letters; empty for none."""
    if not record.attempts:
        return ""
    attempt = record.last
    parts = [
        f"attempt {attempt.number}",
        *_progress(attempt, pace),
        *_memory(record, attempt),
        *_changed(record, attempt),
    ]
    text = "oomguard " + "  ".join(parts)
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _progress(attempt: Attempt, pace: Pace) -> Iterator[str]:
    doing = _DOING.get(attempt.phase)
    if doing is not None:
        yield doing
    if not attempt.steps_done:
        return
    steps = [one.training.total_steps for one in attempt.counted if one.training]
    total = next(filter(None, reversed(steps)), None)
    yield f"step {attempt.steps_done}" + (f" of {total}" if total else "")
    rate = pace.steps_per_second if pace.attempt == attempt.number else None
    if rate is None:
        return
    yield f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s a step"
    if total and attempt.steps_done < total:
        yield f"{_duration((total - attempt.steps_done) / rate)} left"


def _memory(record: RunRecord, attempt: Attempt) -> Iterator[str]:
    """Yield the peak beside the limit that counts it."""
    limits = record.limits
    if attempt.reserved_peak_bytes:
        gpu = limits.gpu_memory_bytes if limits else None
        yield _used("GPU", attempt.reserved_peak_bytes, gpu)
    elif limits and limits.host_memory_by == CapBy.RLIMIT and attempt.data_peak_bytes:
        yield _used("memory", attempt.data_peak_bytes, limits.host_memory_bytes)
    elif attempt.host_peak_bytes:
        yield _used("memory", attempt.host_peak_bytes, None)


def _used(what: str, peak_bytes: int, limit_bytes: int | None) -> str:
    if not limit_bytes:
        return f"{what} {show_bytes(peak_bytes)}"
    full = min(_BAR, round(_BAR * peak_bytes / limit_bytes))
    bar = _FULL * full + _EMPTY * (_BAR - full)
    return f"{what} {bar} {show_bytes(peak_bytes)} of {show_bytes(limit_bytes)}"


def _changed(record: RunRecord, attempt: Attempt) -> Iterator[str]:
    changes = differences(record.job.asked, attempt.spec.plan) if record.job else ()
    if changes:
        yield show_changes(changes)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
