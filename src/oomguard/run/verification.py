"""Compare what the monitor counted with the plan and with the requested job. Pure.

A count that differs from the plan ends an attempt whose batch oomguard has changed, since its
promise is broken, and one that changed its batch itself after an OOM. A job that runs the user's
own command is never stopped for being read wrongly: its report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.process.messages import LossReport, TrainingReport, Window
from oomguard.run.epochs import batches, epoch
from oomguard.run.events import Counted
from oomguard.run.state import Attempt, RunRecord

#: Larger relative differences of the first step's loss are not rounding, dropout or bf16.
LOSS_TOLERANCE = 0.05
_SURE = ("trainer", "loader", "forward")
_COUPLINGS = {
    "in_batch": "the loss compares the samples of a micro batch with each other (in-batch "
    "negatives): a smaller micro batch has fewer of them",
    "batch_norm": "batch norm normalizes over the micro batch",
    "ignores_num_items": "compute_loss of the script ignores num_items_in_batch and returns the "
    "mean of each micro batch: the Trainer adds these up, so loss and gradient grow with the "
    "accumulation",
}


class Outcome(str, Enum):
    """What a comparison showed."""

    VERIFIED = "verified"
    DIFFERS = "differs"
    NOT_VERIFIED = "not_verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was expected, what was observed, and why that is or is not the same."""

    outcome: Outcome
    reason: str
    expected: float | None = None
    observed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was counted in the last attempt: samples of a step, total steps, first loss."""

    samples_per_step: Check
    total_steps: Check
    first_loss: Check


def verify(record: RunRecord) -> Verified:
    """Return what is known of the last attempt."""
    job = record.job
    if job is None or not record.attempts:
        unknown = _unknown("nothing was launched")
        return Verified(samples_per_step=unknown, total_steps=unknown, first_loss=unknown)
    return Verified(
        samples_per_step=samples_check(record.last, job),
        total_steps=_steps_check(record, job),
        first_loss=_loss_check(record, job),
    )


def samples_check(attempt: Attempt, job: Job) -> Check:
    """Compare the samples of the first full optimizer step of each rank with the plan."""
    plan = attempt.spec.plan
    incomparable = _not_comparable(job, plan)
    if incomparable is not None:
        return _unknown(incomparable)
    full = [event for event in attempt.counted if event.window and _is_full(event.window)]
    if not full:
        return _unknown(_why_uncounted(attempt))
    checks = [_rank_check(event, plan, job) for event in full]
    bad = (check for check in checks if check.outcome is Outcome.DIFFERS)
    found = next(bad, checks[0])
    if found.outcome is Outcome.DIFFERS:
        cause = _cause(attempt, job, found)
        return Check(
            outcome=found.outcome,
            expected=found.expected,
            observed=found.observed,
            reason=f"{found.reason}: {cause}",
        )
    return found


def difference(record: RunRecord) -> str | None:
    """Return why the last attempt must end: its batch is not what oomguard made of it."""
    job = record.job
    if job is None:
        return None
    attempt = record.last
    check = samples_check(attempt, job)
    if check.outcome is not Outcome.DIFFERS:
        return None
    return check.reason if _is_changed(attempt.spec.plan, job) or _shrank(attempt) else None


def misread(record: RunRecord) -> str | None:
    """Return why no plan can follow an attempt that ran out of memory.

    Its batch is not what the requested config was taken to say, or did not follow a change of it.
    """
    if record.job is None:
        return None
    check = samples_check(record.last, record.job)
    if check.outcome is Outcome.DIFFERS:
        return check.reason
    plan, first = record.last.spec.plan, _training(record.last)
    if _not_comparable(record.job, plan) or first is None or not _counts(first):
        return None
    return _other_first_batch(record, first.samples or 0, first.counted_by)


def _other_first_batch(record: RunRecord, samples: int, counted_by: str | None) -> str | None:
    """Return how the first micro batch differs from the plan's; it may be of all GPUs."""
    micro, ranks = record.last.spec.plan.micro_batch, record.job.world.size if record.job else 1
    shown = f"samples of the first micro batch: expected {micro}, observed {samples}"
    for earlier in record.attempts[:-1]:
        before, planned = _training(earlier), earlier.spec.plan.micro_batch
        if before and before.samples == samples and planned != micro and samples > micro * ranks:
            return f"{shown}, as with {planned} before: {_IGNORES_MICRO}"
    # The rows that a hand-written loop's model is called with need not be samples.
    if counted_by == "forward":
        return None
    # A loop may fetch the batch of a whole step and divide it into micro batches itself.
    divides = counted_by == "loader" and samples % micro == 0
    is_planned = samples in (micro, micro * ranks) or divides
    return None if is_planned else f"{shown}: {_MISREAD}"


_IGNORES_MICRO = "the script ignores the setting for its micro batch"
_MISREAD = (
    "the script has a default of its own, a flag is abbreviated, or the script ignores the "
    "setting. Pass the micro batch and the accumulation by their full names, if the script "
    "takes them"
)


def not_same_math(record: RunRecord, plan: Plan) -> str | None:
    """Return why a plan with another micro batch than the requested one is not the same math."""
    job = record.job
    if job is None or not _is_changed(plan, job):
        return None
    return next(_reasons(record, job, plan), None)


def allows_only_same(record: RunRecord) -> bool:
    """Return whether a change that is not the same math is refused."""
    return record.limits is not None and record.limits.allow is not Fidelity.NEW_RECIPE


def broken_promise(record: RunRecord) -> str | None:
    """Return why the last attempt is not the same math, if only that is allowed."""
    return not_same_math(record, record.last.spec.plan) if allows_only_same(record) else None


def _reasons(record: RunRecord, job: Job, plan: Plan) -> Iterator[str]:
    for attempt in record.attempts:
        for loss in _losses(attempt):
            yield from (_COUPLINGS.get(one, one) for one in loss.couplings)
    for attempt in record.attempts:
        known = _training(attempt)
        if known is not None and attempt.spec.probe is None:
            yield from _other_epoch(job, attempt.spec.plan, plan, known)
    # What was observed of attempts under this plan's batch.
    if record.last.spec.plan == plan:
        for check in (_steps_check(record, job), _loss_check(record, job)):
            if check.outcome is Outcome.DIFFERS:
                yield check.reason


def _other_epoch(job: Job, ran: Plan, plan: Plan, known: TrainingReport) -> Iterator[str]:
    """Yield how the epochs of `plan` differ from those of the requested one.

    `known` was reported under the plan `ran`; nothing is predicted unless its loader has as many
    batches as predicted.
    """
    samples, world, total = known.dataset_samples, job.world.size, known.total_steps
    if known.drop_last is None or not samples or total is None:
        return
    if known.batches != batches(samples, ran.micro_batch, world, drop_last=known.drop_last):
        return
    before = epoch(samples, job.asked, world, drop_last=known.drop_last)
    after = epoch(samples, plan, world, drop_last=known.drop_last)
    if total < min(before.steps, after.steps):  # training ends within the first epoch
        return
    dropped = " of what drop_last keeps" if known.drop_last else ""
    if before.steps != after.steps:
        yield (
            f"an epoch of {samples} samples has {after.steps} optimizer steps{dropped} instead of "
            f"{before.steps}, so total steps and learning rate schedule differ"
        )
    elif before.last_samples != after.last_samples:
        yield (
            f"the last optimizer step of an epoch has {after.last_samples} samples{dropped} "
            f"instead of {before.last_samples}"
        )


def _steps_check(record: RunRecord, job: Job) -> Check:
    """Compare total steps and warm-up with those of an attempt at the requested batch."""
    now = None if record.last.spec.probe else _training(record.last)
    if now is None or now.total_steps is None:
        return _unknown("the job does not report how many steps it will take")
    if not _is_changed(record.last.spec.plan, job):
        return Check(
            outcome=Outcome.VERIFIED,
            expected=now.total_steps,
            observed=now.total_steps,
            reason="the batch is the requested one",
        )
    asked = _as_requested(record, job)
    before = next((one for one in map(_training, asked) if one and one.total_steps), None)
    if before is None or before.total_steps is None:
        return _unknown("the requested plan did not get as far as its first training step")
    if (before.total_steps, before.warmup_steps) == (now.total_steps, now.warmup_steps):
        return Check(
            outcome=Outcome.VERIFIED,
            expected=before.total_steps,
            observed=now.total_steps,
            reason="as many optimizer and warm-up steps as with the requested plan",
        )
    return Check(
        outcome=Outcome.DIFFERS,
        expected=before.total_steps,
        observed=now.total_steps,
        reason=f"total optimizer steps: {now.total_steps} instead of {before.total_steps}, "
        f"warm-up steps: {now.warmup_steps} instead of {before.warmup_steps}",
    )


def _loss_check(record: RunRecord, job: Job) -> Check:
    """Compare the loss of the first step with that of an attempt at the requested batch."""
    now = {loss.rank: loss for loss in _losses(record.last)}
    coupled = next((one for loss in now.values() for one in loss.couplings), None)
    if not _is_changed(record.last.spec.plan, job):
        return _unknown("the batch is the requested one: there is nothing to compare")
    if coupled is not None:
        return Check(outcome=Outcome.DIFFERS, reason=_COUPLINGS.get(coupled, coupled))
    asked = _as_requested(record, job)
    before = {loss.rank: loss for one in asked for loss in _losses(one)}
    for rank, loss in now.items():
        other = before.get(rank)
        if other is None or other.value is None or loss.value is None:
            continue
        if other.label_sum is None or other.label_sum != loss.label_sum:
            return _unknown("the first steps did not have the same samples, as far as labels show")
        close = abs(loss.value - other.value) <= LOSS_TOLERANCE * abs(other.value)
        return Check(
            outcome=Outcome.VERIFIED if close else Outcome.DIFFERS,
            expected=other.value,
            observed=loss.value,
            reason="loss of the first step on the same samples: "
            f"{loss.value:.4g}, with the requested plan {other.value:.4g}",
        )
    return _unknown("the first step of the requested plan was not seen")


def _rank_check(event: Counted, plan: Plan, job: Job) -> Check:
    """Compare one full step of one rank; all ranks take as many samples."""
    window, ranks = event.window, job.world.size
    if window is None or window.samples is None:
        raise AssertionError("only full windows are compared")
    samples, world = window.samples, event.world or 1
    expected, observed = plan.rank_batch * ranks, samples * world
    over = f" over {world} ranks" if world > 1 else ""
    if observed == expected:
        return Check(
            outcome=Outcome.VERIFIED,
            expected=expected,
            observed=observed,
            reason=f"{observed} samples per optimizer step{over}, counted by {window.counted_by}",
        )
    if world != ranks and samples == plan.rank_batch:
        return _unknown(
            f"{world} processes report {samples} samples each, and the plan has {ranks} "
            "data-parallel processes"
        )
    return Check(
        outcome=Outcome.DIFFERS,
        expected=expected,
        observed=observed,
        reason=f"samples per optimizer step: expected {expected} (micro batch {plan.micro_batch} "
        f"x accumulation {plan.accumulation} x {ranks} rank{'' if ranks == 1 else 's'}), "
        f"observed {observed} in step {event.step} (micro batches of this rank: "
        f"{window.micro_batches})",
    )


def _cause(attempt: Attempt, job: Job, check: Check) -> str:
    """Return the likely cause of a difference."""
    plan, expected, observed = attempt.spec.plan, check.expected or 0, check.observed or 0
    ranks = job.world.size
    if _shrank(attempt):
        return (
            "the job made its batch smaller after an OOM, as accelerate's "
            "find_executable_batch_size does. Remove that from the script: oomguard changes "
            "micro batch and accumulation together"
        )
    if not _is_changed(plan, job):
        return _MISREAD
    if plan.accumulation > 1 and observed * plan.accumulation == expected:
        return (
            "the script ignores the setting for gradient accumulation, which it needs for a "
            "smaller micro batch"
        )
    if observed == job.asked.micro_batch * plan.accumulation * ranks:
        return _IGNORES_MICRO
    if observed == expected * plan.accumulation:
        return "the accumulation is applied twice"
    return "the script does not follow the settings for micro batch and accumulation"


def _shrank(attempt: Attempt) -> bool:
    """Return whether the first micro batch had the planned size and steps then had less."""
    first = _training(attempt)
    plan = attempt.spec.plan
    if first is None or not _counts(first) or first.samples != plan.micro_batch:
        return False
    sizes = [
        (event.window.samples or 0) // event.window.micro_batches
        for event in attempt.counted
        if event.window and _is_full(event.window) and event.window.micro_batches
    ]
    return bool(sizes) and max(sizes) < plan.micro_batch and attempt.spec.plan.accumulation == 1


def _as_requested(record: RunRecord, job: Job) -> list[Attempt]:
    """Return the attempts with the requested batch; a probe has other steps."""
    return [
        attempt
        for attempt in record.attempts
        if attempt.spec.probe is None and not _is_changed(attempt.spec.plan, job)
    ]


def _not_comparable(job: Job, plan: Plan) -> str | None:
    """Return why samples that are counted cannot be compared with a plan."""
    if job.group is not None or plan.completion_length is not None:
        return "its batches are generated during the step"
    if plan.auto_find_batch_size:
        return "auto_find_batch_size lets the Trainer choose the micro batch"
    return None


def _is_changed(plan: Plan, job: Job) -> bool:
    asked = job.asked
    return (plan.micro_batch, plan.accumulation) != (asked.micro_batch, asked.accumulation)


def _is_full(window: Window) -> bool:
    return bool(window.samples) and not window.short and window.counted_by in _SURE


def _counts(training: TrainingReport) -> bool:
    return bool(training.samples) and not training.short and training.counted_by in _SURE


def total_steps(attempt: Attempt) -> int | None:
    """Return how many optimizer steps the Trainer plans, None if it was not seen."""
    known = _training(attempt)
    return None if known is None else known.total_steps


def first_micro_batch(attempt: Attempt) -> int | None:
    """Return the samples of the first micro batch as they were counted, None if they were not."""
    first = _training(attempt)
    return first.samples if first is not None and _counts(first) else None


def _training(attempt: Attempt) -> TrainingReport | None:
    """Return the latest report of the first rank that has one: it repeats earlier ones."""
    reports = [event.training for event in attempt.counted if event.training is not None]
    ranks = [report for report in reports if not report.rank]
    return next(reversed(ranks or reports), None)


def _losses(attempt: Attempt) -> Iterable[LossReport]:
    return (event.loss for event in attempt.counted if event.loss is not None)


def _why_uncounted(attempt: Attempt) -> str:
    if not attempt.reporting:
        return "no process of the job reported anything"
    windows = [event.window for event in attempt.counted if event.window is not None]
    reason = next((window.unclear for window in windows if window.unclear), None)
    if reason:
        return reason
    if any(window.counted_by == "rows" for window in windows):
        return "the rows of its batches are known, but not how many samples they hold"
    if windows:
        return "no full accumulation window was seen: the data ended in each of them"
    return "no optimizer step was seen"


def _unknown(reason: str) -> Check:
    return Check(outcome=Outcome.NOT_VERIFIED, reason=reason)
