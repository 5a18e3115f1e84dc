"""One line of text for each thing that happens in a run."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.cli.peak_text import main_peak
from oomguard.cli.plan_text import COSTS, counted, show_changes
from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.job.checkpoint import Continuation, Mode
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Skip
from oomguard.run.attempt import Probe, StopReason, Weighed
from oomguard.run.events import (
    CutShort,
    Limits,
    Predicted,
    Resumed,
    Split,
    Status,
)
from oomguard.run.leak import Growth
from oomguard.run.report import AttemptReport, FitReport
from oomguard.run.shortfall import Shortfall
from oomguard.run.splits import SplitVariant
from oomguard.run.state import Attempt, RunRecord
from oomguard.run.verification import Check, Outcome, Verified
from oomguard.units import show_bytes, show_seconds

KINDS = {
    Kind.DEVICE_OOM: "out of device memory",
    Kind.HOST_OOM: "out of host memory",
    Kind.SHM_OOM: "out of shared memory (/dev/shm)",
    Kind.PINNED_OOM: "out of pinned host memory",
}
#: How a run ended, as lists and reports say it.
STATUSES = {
    Status.FIT: "trained",
    Status.EXHAUSTED: "does not fit",
    Status.FAILED: "the job failed",
    Status.INTERRUPTED: "interrupted",
}
_STOPPED_BY_US = (
    StopReason.RECYCLE, StopReason.FITS, StopReason.DIFFERS, StopReason.NOT_SAME_MATH,
    StopReason.CHEAPER,
)  # fmt: skip


def is_job_failure(record: RunRecord) -> bool:
    """Return whether the run ended with the job's own error, printed when the attempt ended."""
    verdict = record.last.verdict if record.attempts else None
    return verdict is not None and verdict.root == record.reason


def job_line(job: Job) -> str:
    """Return what is launched, and its global batch."""
    processes = f"{job.world.size} process{'es' if job.world.size > 1 else ''}"
    batch = f"micro batch {job.asked.micro_batch} x accumulation {job.asked.accumulation}"
    return (
        f"{job.framework} on {job.device.value}: global batch {job.global_batch} "
        f"({batch} x {processes})"
    )


def resumed_line(event: Resumed | CutShort, record: RunRecord) -> str:
    """Return which run goes on, and what was lost of its record."""
    if isinstance(event, CutShort):
        return f"attempt {event.attempt} was cut short: {event.verdict.root or ''}"
    cut = (
        f"; {event.cut_bytes} bytes of an incomplete event were dropped" if event.cut_bytes else ""
    )
    return f"resuming {record.run}, started {record.at}{cut}"


def split_line(event: Split) -> str:
    """Return which step ran in smaller parts, and what it cost."""
    if event.evaluation:
        return (
            f"out of memory in an evaluation: ran the batch again in {event.parts} parts of at "
            f"most {event.rows} samples, and the evaluation goes on ({event.seconds:.1f} s lost)"
        )
    return (
        f"out of memory in optimizer step {event.step}: ran it again in {event.parts} parts of at "
        f"most {event.rows} x {event.width} tokens, and training goes on ({event.seconds:.1f} s "
        "lost)"
    )


def with_splits_line(variant: SplitVariant) -> str:
    """Return what the final config costs, and the plan that ran beside it."""
    return (
        f"only {variant.split_steps} of {counted(variant.optimizer_steps, 'step')} did not fit "
        f"whole: the final config makes {variant.final_passes} passes in every step; micro batch "
        f"{variant.plan.micro_batch} x {variant.plan.accumulation} makes {variant.passes} in the "
        f"others, and needs oomguard ({variant.seconds:.1f} s lost)"
    )


def split_key(event: Split) -> str:
    """Return what is said once for each attempt."""
    return f"split {event.attempt} {'evaluation' if event.evaluation else 'training'}"


def _splits_note(attempt: Attempt) -> str:
    splits = attempt.splits
    if splits is None:
        return ""
    batches = len(splits.evaluations)
    found = [counted(splits.steps, "step")] if splits.steps else []
    if batches:
        found.append(counted(batches, "evaluation batch", "evaluation batches"))
    return f", {' and '.join(found)} split ({splits.seconds:.1f} s lost)"


def weighed_line(found: Weighed) -> str:
    """Return why an attempt whose steps run in parts is restarted."""
    return (
        f"restarting with a cheaper change: {found.divided_s:.3g} s for a step in parts, about "
        f"{found.whole_s:.3g} s whole; over the {counted(found.steps_left, 'step')} left that is "
        f"{found.saved_s:.0f} s, and a restart costs {found.cost_s:.0f} s"
    )


def step_cost(one: AttemptReport) -> str:
    """Return what steps in parts took, and what they would take whole, as far as that is known."""
    found = one.weighed
    if found is not None:
        return f"{found.divided_s:.3g} s for such a step, about {found.whole_s:.3g} s if whole"
    return f"not known if whole: {one.not_weighed}" if one.not_weighed else ""


def growth_line(growth: Growth) -> str:
    """Return how fast memory grows, and when it will be full."""
    line = f"memory grows by {show_bytes(growth.bytes_per_step)} per step"
    if growth.per_shape_bytes is not None:
        line += f" ({show_bytes(growth.per_shape_bytes)} with each new batch shape)"
    if growth.forecast_step is None:
        return line
    left = max(0, growth.forecast_step - growth.step)
    return f"{line}; out of memory in about {left} steps"


def not_launched_line(skip: Skip) -> str:
    """Return why a strategy was not tried alone."""
    return f"{skip.strategy} is not tried alone: {skip.reason}"


def begin_line(begins: Continuation) -> str:
    """Return where an attempt begins."""
    if begins.checkpoint is None:
        return f"restarting from step 0: {begins.reason}"
    kept = "" if begins.mode is Mode.FULL else f", weights only: {begins.reason}"
    return f"resuming from step {begins.checkpoint.step}: {begins.checkpoint.path}{kept}"


def verified_line(found: Verified) -> tuple[str, str]:
    """Return what was counted in one line, and its style."""
    check = found.samples_per_step
    if check.outcome is Outcome.VERIFIED:
        return f"verified: {check.reason}", ""
    if check.outcome is Outcome.DIFFERS:
        return f"not as planned: {check.reason}", "yellow"
    return f"samples per step not verified: {check.reason}", "yellow"


def shortfall_lines(found: Shortfall) -> Iterator[str]:
    """Yield how much memory was missing, and what would help beyond the ladder."""
    if found.missing_bytes is None:
        yield f"how much memory is missing is not known: {found.how}"
    else:
        missing = f"{found.bound.value} {show_bytes(found.missing_bytes)}"
        yield f"missing in attempt {found.attempt}: {missing} ({found.how})"
    for one in found.untried:
        changes = f"{show_changes(one.step.changes)}, {COSTS[one.step.fidelity]}"
        yield f"not tried: {one.step.strategy} ({changes}); it needs {one.needs}"
    for one_helps in found.helps:
        yield f"would help: {one_helps}"


def final_batch_line(check: Check) -> tuple[str, str]:
    """Return whether the final micro batch has passed at once, and the line's style."""
    if check.outcome is Outcome.VERIFIED:
        return f"final config: {check.reason}", ""
    return f"final config not verified: {check.reason}", "yellow"


def unchanged_line(report: FitReport) -> str:
    """Return what a config without changes stands for."""
    if report.final_batch is None:
        return "the requested config fits; nothing was changed"
    return "the requested config was not changed; it trained because oomguard divided its batches"


def exit_line(attempt: Attempt, verdict: Verdict, limits: Limits | None) -> str:
    """Return how an attempt ended."""
    took = f" ({show_seconds(attempt.seconds)})" if attempt.seconds is not None else ""
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


def survived(attempt: Attempt) -> Finding | None:
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
    peak = main_peak(attempt, limits)
    if peak is None:
        return ""
    return f", peak {peak.measure.value} {show_bytes(peak.size_bytes)}{peak.limit}"


def _oom_line(verdict: Verdict, steps: str) -> str:
    shown = verdict.phase_known and verdict.phase.value != "unknown"
    where = f" in {verdict.phase.value}" if shown else ""
    rank = "" if verdict.rank is None else f" on rank {verdict.rank}"
    return f"{KINDS[verdict.kind]}{where}{rank}{steps}{_requested(verdict)}"


def _probe_line(attempt: Attempt, verdict: Verdict, limits: Limits | None) -> str:
    if attempt.probe_passed:
        return f"probe passed{_steps(attempt)}{_peaks(attempt, limits)}"
    if verdict.kind is Kind.INTERRUPTED:
        return f"probe stopped{_steps(attempt)}"
    why = verdict.root or "no optimizer step was seen"
    return f"probe inconclusive ({why}); starting the real run"


def probe_note(probe: Probe | None) -> str:
    """Return that an attempt is a probe, and on which batches."""
    if probe is None:
        return ""
    length = f" on batches of {probe.tokens} tokens" if probe.tokens else ""
    return f", a probe of {counted(probe.steps, 'step')}{length}"


def measured_line(attempt: Attempt, predicted: Predicted | None) -> str:
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
