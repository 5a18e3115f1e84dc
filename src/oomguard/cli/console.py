"""Console output of a run: one line per event on stderr, beside the job's own output."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click

from oomguard.cli.output import echo
from oomguard.cli.streams import discard
from oomguard.evidence.settle import what_settles
from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.job.checkpoint import Continuation, Mode
from oomguard.job.plan import Change, Plan, Value, differences
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Fidelity, Step
from oomguard.process.limits import CapBy
from oomguard.run.attempt import Probe, Purpose, StopReason
from oomguard.run.events import (
    Counted,
    CutShort,
    DeviceFree,
    Event,
    Exited,
    Finished,
    Growing,
    LeftRunning,
    Limits,
    NotSplit,
    Planned,
    Predicted,
    Resumed,
    RunStarted,
    Split,
    Status,
    Stopping,
)
from oomguard.run.leak import Growth
from oomguard.run.report import FitReport
from oomguard.run.state import Attempt, RunRecord
from oomguard.run.verification import Outcome, Verified, difference, not_same_math, samples_check
from oomguard.units import show_bytes

COSTS = {
    Fidelity.SAME_MATH: "same math",
    Fidelity.SAME_RECIPE: "same recipe, other numerics",
    Fidelity.NEW_RECIPE: "new recipe",
}
_KINDS = {
    Kind.DEVICE_OOM: "out of device memory",
    Kind.HOST_OOM: "out of host memory",
    Kind.SHM_OOM: "out of shared memory (/dev/shm)",
    Kind.PINNED_OOM: "out of pinned host memory",
}
_STOPPED_BY_US = (
    StopReason.RECYCLE, StopReason.FITS, StopReason.DIFFERS, StopReason.NOT_SAME_MATH,
)  # fmt: skip
#: Where nothing shows the phase of an OOM.
PHASE_UNKNOWN = (
    "note: nothing showed what the job was doing at this OOM, so strategies for any phase were "
    "tried; what makes a phase known: see docs/adding-a-framework.md"
)


class Console:
    """Prints events as they happen, on stderr; `quiet_stdout` sends the job's output there too."""

    def __init__(self, *, quiet_stdout: bool, verbose: bool = False) -> None:
        self._verbose = verbose
        self._stream = sys.stderr if quiet_stdout else sys.stdout
        self._fresh_line = True
        self._printed: set[str] = set()
        self.lost: dict[str, str] = {}  # streams that could not be written, and why

    def output(self, data: bytes) -> None:
        """Write the job's output, unchanged."""
        self._write(data)
        self._fresh_line = data.endswith(b"\n")

    def event(self, event: Event, record: RunRecord) -> None:  # noqa: C901, PLR0912  a case for each kind
        """Print an event, if it matters to the user."""
        match event:
            case RunStarted():
                self._line(_job_line(event.job))
                if event.job.trained_embeddings:
                    names = " and ".join(event.job.trained_embeddings)
                    self._line(f"{names} will be trained in full, in addition to the adapter")
            case Resumed() | CutShort():
                self._line(_resumed_line(event, record))
            case Planned():
                self._planned(event, record)
            case LeftRunning():
                count = _counted(len(event.pids), "process", "processes")
                self._line(
                    f"the command has exited, {count} of it still running: waiting", "yellow"
                )
            case Exited():
                self._exited(event, record)
            case Counted():
                self._compared(record)
            case Split() if event.failed and not self._is_known(f"split {event.attempt}"):
                self._line(_split_line(event), "yellow")
            case NotSplit() if not self._is_known(event.reason):
                self._line(f"an OOM is not answered by smaller parts: {event.reason}", "yellow")
            case Growing():
                self._line(_growth_line(event.growth), "yellow")
            case Stopping() if event.reason == StopReason.RECYCLE:
                self._line("stopped at this checkpoint, before an OOM", "yellow")
            case DeviceFree() if not event.free:
                self._line(f"the device did not become free: {event.busy}", "red")
            case Finished():
                self._finished(record)

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self._line(text, style)

    def notice(self, text: str) -> None:
        """Print what the user should know at once."""
        self._line(text, "red")

    def outcome(self, report: FitReport) -> None:
        """Print each change from the requested config, and the strongest fidelity cost."""
        if report.status is not Status.FIT:
            return
        if report.verified is not None:
            self._line(*_verified_line(report.verified))
        if not report.changes or report.fidelity is None:
            self._line("the requested config fits; nothing was changed")
            return
        self._line(f"changes made ({COSTS[report.fidelity]}):")
        for change in report.changes:
            self._line(f"  {show_change(change)}")

    def _write(self, data: bytes) -> None:
        """Write to the job's output; one that is full or closed does not stop training."""
        try:
            self._stream.buffer.write(data)
            self._stream.buffer.flush()
        except OSError as error:
            self._lose(self._stream, error)

    def _lose(self, stream: TextIO, error: OSError) -> None:
        name = "stderr" if stream is sys.stderr else "stdout"
        self.lost.setdefault(name, error.strerror or str(error))
        discard(stream)

    def _is_known(self, what: str) -> bool:
        """Return whether something was printed before, and note that it is."""
        known = what in self._printed
        self._printed.add(what)
        return known

    def _planned(self, event: Planned, record: RunRecord) -> None:
        if event.spec.purpose is Purpose.TRIAL:
            undone = ", ".join(dict.fromkeys(event.spec.undone))
            self._line(f"fits; retrying without {undone} to see if it was needed", "yellow")
        elif event.spec.purpose is Purpose.BEST:
            self._line("smaller changes do not fit; continuing with the best plan found", "yellow")
        for step in event.spec.steps:
            self._line(f"{step.summary}: {_changes(step)} [{COSTS[step.fidelity]}]", "yellow")
        ran = [attempt for attempt in record.attempts if attempt.spec.probe is None]
        lost = max((attempt.steps_done for attempt in ran), default=0)
        if event.spec.begins is not None and (event.spec.begins.checkpoint or lost):
            self._line(_begin_line(event.spec.begins))
        title = f"attempt {event.attempt}{_probe_note(event.spec.probe)}"
        requested = record.job.asked if record.job else None
        self._line(f"{title}: {show_plan(event.spec.plan, requested)}", "bold")

    def _exited(self, event: Exited, record: RunRecord) -> None:
        attempt = record.last
        passed = attempt.probe_passed
        good = passed or event.verdict.kind is Kind.OK
        line = _exit_line(attempt, event.verdict, record.limits)
        self._line(line, "green" if good else "red")
        if event.verdict.kind is Kind.OK and (survived := _survived(attempt)) is not None:
            self._line(f"note: it survived an OOM: {survived.text}", "yellow")
        if event.log_error is not None:
            self._line(f"its log ends early: {event.log_error}", "yellow")
        if passed:
            self._line(_measured_line(attempt, record.predicted_for(attempt.spec.plan)))

    def _compared(self, record: RunRecord) -> None:
        """Print once for each attempt what is not as the plan has it."""
        attempt, job = record.last, record.job
        told = f"compared {attempt.number}"
        if job is None or told in self._printed:
            return
        check = samples_check(attempt, job)
        broken = not_same_math(record, attempt.spec.plan)
        known = any("not the same math" in step.summary for step in attempt.spec.steps)
        if check.outcome is Outcome.DIFFERS and difference(record) is None:
            self._line(check.reason, "yellow")  # otherwise the run ends with this reason
        elif broken is not None and not known:
            self._line(f"not the same math, but a new recipe: {broken}", "yellow")
        else:
            return
        self._printed.add(told)

    def _finished(self, record: RunRecord) -> None:
        if record.status is Status.FIT:
            probes = sum(1 for attempt in record.attempts if attempt.spec.probe is not None)
            count = _counted(len(record.attempts) - probes, "attempt")
            after = f" after {_counted(probes, 'probe')}" if probes else ""
            self._line(f"trained, in {count}{after}", "bold green")
            return
        reason = record.reason
        if record.status is Status.FAILED and _is_job_failure(record):
            why = record.last.verdict
            if why is not None and why.kind is Kind.UNKNOWN:
                shown = "nothing shows that memory was the reason"
                self._line(f"failed: {shown}, so it is not relaunched", "bold red")
                self._line(f"to find out: {what_settles(why)}", "yellow")
            else:
                self._line("failed: not a memory failure, so it is not relaunched", "bold red")
        elif record.status is Status.EXHAUSTED:
            self._line(f"giving up: {reason}", "bold red")
            if record.last.verdict is not None and not record.last.verdict.phase_known:
                self._line(PHASE_UNKNOWN, "yellow")
        else:
            status = record.status.value if record.status else ""
            self._line(f"{status}: {reason}", "bold red")
        if record.skipped_last and not self._verbose:
            count = _counted(len(record.skipped_last), "strategy", "strategies")
            self._line(f"  {count} skipped (--verbose lists the reasons)")
            return
        for skip in record.skipped_last:
            self._line(f"  skipped {skip.strategy}: {skip.reason}")

    def _line(self, text: str, style: str = "") -> None:
        if not self._fresh_line:
            self._write(b"\n")
            self._fresh_line = True
        colour = style.replace("bold", "").strip() or None
        styled = click.style(text, fg=colour, bold=True if "bold" in style else None)
        plain = bool(os.environ.get("NO_COLOR"))
        line = f"{click.style('oomguard', fg='cyan')} {styled}"
        try:
            echo(line, err=True, color=False if plain else None)
        except OSError as error:
            self._lose(sys.stderr, error)


def _is_job_failure(record: RunRecord) -> bool:
    """Return whether the run ended with the job's own error, printed when the attempt ended."""
    verdict = record.last.verdict if record.attempts else None
    return verdict is not None and verdict.root == record.reason


def _job_line(job: Job) -> str:
    processes = f"{job.world.size} process{'es' if job.world.size > 1 else ''}"
    return (
        f"{job.framework} on {job.device.value}: global batch {job.global_batch} "
        f"(micro {job.asked.micro_batch} x accumulation {job.asked.accumulation} x {processes})"
    )


def _resumed_line(event: Resumed | CutShort, record: RunRecord) -> str:
    if isinstance(event, CutShort):
        return f"attempt {event.attempt} was cut short: {event.verdict.root or ''}"
    cut = (
        f"; {event.cut_bytes} bytes of an incomplete event were dropped" if event.cut_bytes else ""
    )
    return f"resuming {record.run}, started {record.at}{cut}"


#: Fields of a plan that its line always shows.
_ALWAYS_SHOWN = frozenset(
    {
        *("micro_batch", "accumulation", "sequence_length", "completion_length"),
        *("precision", "tuning", "quantization", "sharding"),
    }
)


def show_plan(plan: Plan, requested: Plan | None = None) -> str:
    """Return the fields of a plan that decide its memory, on one line.

    Every other field that differs from the `requested` plan is named as well.
    """
    parts = [f"micro batch {plan.micro_batch} x {plan.accumulation}"]
    if plan.sequence_length is not None:
        parts.append(f"{plan.sequence_length} tokens")
    if plan.completion_length is not None:
        parts.append(f"{plan.completion_length} generated tokens")
    parts += [
        value.value
        for value in (plan.precision, plan.tuning, plan.quantization, plan.sharding)
        if value is not None and value.value != "none"
    ]
    changes = differences(requested, plan) if requested else ()
    parts += [
        f"{change.field} {_value(change.after)}"
        for change in changes
        if change.field not in _ALWAYS_SHOWN
    ]
    return ", ".join(parts)


def _split_line(event: Split) -> str:
    return (
        f"out of memory in optimizer step {event.step}: ran it again in {event.parts} parts of at "
        f"most {event.rows} x {event.width} tokens, and training goes on ({event.seconds:.1f} s "
        "lost)"
    )


def _splits_note(attempt: Attempt) -> str:
    splits = attempt.splits
    if splits is None:
        return ""
    return f", {_counted(splits.steps, 'step')} split ({splits.seconds:.1f} s lost)"


def _growth_line(growth: Growth) -> str:
    line = f"memory grows by {show_bytes(growth.bytes_per_step)} per step"
    if growth.forecast_step is None:
        return line
    left = max(0, growth.forecast_step - growth.step)
    return f"{line}; out of memory in about {left} steps"


def _begin_line(begins: Continuation) -> str:
    if begins.checkpoint is None:
        return f"restarting from step 0: {begins.reason}"
    kept = "" if begins.mode is Mode.FULL else f", weights only: {begins.reason}"
    return f"resuming from step {begins.checkpoint.step}: {begins.checkpoint.path}{kept}"


def _verified_line(found: Verified) -> tuple[str, str]:
    """Return what was counted in one line, and its style."""
    check = found.samples_per_step
    if check.outcome is Outcome.VERIFIED:
        return f"verified: {check.reason}", ""
    if check.outcome is Outcome.DIFFERS:
        return f"not as planned: {check.reason}", "yellow"
    return f"samples per step not verified: {check.reason}", "yellow"


def _exit_line(attempt: Attempt, verdict: Verdict, limits: Limits | None) -> str:
    took = f" ({attempt.seconds:.0f} s)" if attempt.seconds is not None else ""
    steps = _steps(attempt)
    if attempt.spec.probe is not None and not verdict.kind.is_memory and not attempt.refused_step:
        return f"{_probe_line(attempt, verdict, limits)}{took}"
    if attempt.stopped in _STOPPED_BY_US:
        return f"stopped{steps}{_peaks(attempt, limits)}{took}"
    if verdict.kind is Kind.OK:
        split = _splits_note(attempt)
        return f"job finished successfully{steps}{split}{_peaks(attempt, limits)}{took}"
    if attempt.refused_step is not None:
        return f"the framework rejects this change: {verdict.root}{took}"
    if not verdict.kind.is_memory:
        return f"job failed (exit code {attempt.returncode}): {verdict.root}{took}"
    return f"{_oom_line(verdict, steps)}{took}"


def _survived(attempt: Attempt) -> Finding | None:
    """Return an OOM that a job which trained has met on the way, and that no split answered."""
    found = attempt.verdict.evidence if attempt.verdict else ()
    answered = attempt.splits is not None and attempt.splits.failed > 0
    shortages = (one for one in found if one.kind.is_memory)
    return next((o for o in shortages if not (answered and o.witness is Witness.INSIDE)), None)


def _steps(attempt: Attempt) -> str:
    if not (attempt.reporting or attempt.steps_done):
        return ""  # not counted without the monitor
    return f" after {attempt.steps_done} optimizer step{'' if attempt.steps_done == 1 else 's'}"


def _requested(verdict: Verdict) -> str:
    size = verdict.requested_bytes
    text = f": tried to allocate {show_bytes(size)}" if size else ""
    if verdict.capacity_bytes:
        text += f" of {show_bytes(verdict.capacity_bytes)} total"
    return text


def _peaks(attempt: Attempt, limits: Limits | None) -> str:
    """Return the peak in the measure of the cap, where there is one, with the cap."""
    if attempt.device_peak_bytes is not None:
        return f", peak GPU memory {show_bytes(attempt.device_peak_bytes)}"
    by_process = limits is not None and limits.host_memory_by == CapBy.RLIMIT
    if limits and limits.host_memory_bytes and by_process and attempt.data_peak_bytes is not None:
        peak, cap = show_bytes(attempt.data_peak_bytes), show_bytes(limits.host_memory_bytes)
        return f", peak private data of a process {peak} (limit {cap})"
    if attempt.host_peak_bytes is not None:
        return f", peak host memory {show_bytes(attempt.host_peak_bytes)}"
    return ""


def _oom_line(verdict: Verdict, steps: str) -> str:
    shown = verdict.phase_known and verdict.phase.value != "unknown"
    where = f" in {verdict.phase.value}" if shown else ""
    rank = "" if verdict.rank is None else f" on rank {verdict.rank}"
    return f"{_KINDS[verdict.kind]}{where}{rank}{steps}{_requested(verdict)}"


def _probe_line(attempt: Attempt, verdict: Verdict, limits: Limits | None) -> str:
    if attempt.probe_passed:
        return f"probe passed{_steps(attempt)}{_peaks(attempt, limits)}"
    if verdict.kind is Kind.INTERRUPTED:
        return f"probe stopped{_steps(attempt)}"
    why = verdict.root or "no optimizer step was seen"
    return f"probe inconclusive ({why}); starting the real run"


def _probe_note(probe: Probe | None) -> str:
    if probe is None:
        return ""
    length = f" on batches of {probe.tokens} tokens" if probe.tokens else ""
    return f", a probe of {_counted(probe.steps, 'step')}{length}"


def _measured_line(attempt: Attempt, predicted: Predicted | None) -> str:
    """Return measured against predicted allocated bytes of a probe."""
    probe, longest = attempt.spec.probe, attempt.longest_batch
    target = probe.tokens if probe else None
    of = f" of {target}" if longest and target and longest < target else ""
    line = (
        f"longest batch: {longest}{of} tokens"
        if longest
        else "batches were not lengthened: they hold no token ids the monitor recognizes"
    )
    measured = attempt.device_peak_bytes
    if measured is None or predicted is None:
        return line
    ratio = measured / max(1, predicted.allocated_bytes) - 1
    return (
        f"{line}; allocated: {show_bytes(measured)} measured, "
        f"{show_bytes(predicted.allocated_bytes)} predicted ({ratio:+.1%})"
    )


def _counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _changes(step: Step) -> str:
    return ", ".join(show_change(change) for change in step.changes)


def show_change(change: Change) -> str:
    """Return a change as `field before -> after`."""
    return f"{change.field} {_value(change.before)} -> {_value(change.after)}"


def _value(value: Value) -> str:
    return "+".join(value) or "none" if isinstance(value, list) else str(value)
