"""The plan that trains without oomguard, and whether it was shown to fit. Pure.

Where steps ran in parts, no whole micro batch of the final config was run: its size is that of the
parts that passed. That says nothing of a script whose micro batch is another than its config's.
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.run.splits import Splits, SplitVariant, halvings, split_variant, without_splits
from oomguard.run.state import Attempt, RunRecord
from oomguard.run.verification import Check, Outcome, first_micro_batch, misread, samples_check


def plan_that_fits(record: RunRecord) -> Plan:
    """Return the plan of the newest attempt; where it divided batches, with micro batches that fit.

    It needs no monitor. Where the job has another batch than its config says, nothing says which
    micro batch a change would give it, so that it stays.
    """
    last, plan = record.last, record.last.spec.plan
    if _is_divided(last) and misread(record) is not None:
        of_evaluations = replace(last.splits or Splits(), rows=0, width=0)
        return without_splits(replace(plan, token_bound=None), of_evaluations)
    return without_splits(plan, last.splits, longest=_longest(record.job, plan))


def with_splits(record: RunRecord) -> SplitVariant | None:
    """Return the plan that ran, if the final one takes many more passes than its few splits."""
    last = record.last
    return split_variant(last.spec.plan, plan_that_fits(record), last.splits, last.steps_done)


def next_path(record: RunRecord) -> tuple[str, ...]:
    """Return the strategies with which the next run of the same job begins.

    Where dividing a few steps is cheaper than a smaller micro batch in all, it does that again.
    """
    last = record.last
    if with_splits(record) is not None:
        return last.spec.path
    return (*last.spec.path, *halvings(last.spec.plan, plan_that_fits(record)))


def final_check(record: RunRecord) -> Check | None:
    """Return whether the final micro batch has passed at once; None where no batch was divided."""
    job, last, plan = record.job, record.last, plan_that_fits(record)
    if job is None or not _is_divided(last):
        return None
    splits, wrong = last.splits or Splits(), misread(record)
    if wrong is not None:
        parts = f", in parts of at most {_shown(splits)}" if splits.rows else ""
        return Check(
            outcome=Outcome.NOT_VERIFIED,
            reason=f"it keeps the requested micro batch, which needs oomguard{parts}: {wrong}",
            expected=plan.micro_batch,
            observed=first_micro_batch(last),
        )
    why = _why_not_shown(last, job, splits)
    return Check(
        outcome=Outcome.NOT_VERIFIED if why else Outcome.VERIFIED,
        reason=why or f"{_shown(splits)} passed at once, up to optimizer step {splits.last}",
        expected=plan.micro_batch,
        observed=splits.rows or None,
    )


def _why_not_shown(last: Attempt, job: Job, splits: Splits) -> str | None:
    """Return why nothing shows that the final micro batch fits, None if its rows passed."""
    plan = last.spec.plan
    counted = samples_check(last, job)
    if counted.outcome is not Outcome.VERIFIED:
        return f"the micro batch that the job really has is not known: {counted.reason}"
    if not splits.rows:
        return f"no batch of more than {plan.token_bound} tokens came up"
    longest = _longest(job, plan) or 0
    if longest > splits.width:
        return (
            f"{_shown(splits)} passed at once, and the data have a sample of {longest} tokens: a "
            "micro batch of such samples has no more tokens, but was not run"
        )
    if splits.last <= 1 and not last.first_step:
        return (
            f"{_shown(splits)} passed at once in the first step only, before the optimizer had "
            "its states"
        )
    return None


def _shown(splits: Splits) -> str:
    return f"{splits.rows} x {splits.width} tokens"


def _is_divided(attempt: Attempt) -> bool:
    """Return whether batches of training ran in parts, or would have."""
    ran = attempt.splits is not None and attempt.splits.steps > 0
    return ran or attempt.spec.plan.token_bound is not None


def _longest(job: Job | None, plan: Plan) -> int | None:
    """Return the tokens of the longest sample; an estimate only where the bound rests on it too."""
    lengths = job.lengths if job else None
    if job is None or lengths is None or lengths.filled:
        return None
    longest = lengths.at_most or lengths.longest
    if plan.token_bound is not None:
        longest = lengths.longest
    elif job.multimodal or not lengths.is_exact:  # as for a probe
        return None
    return min(longest, plan.sequence_length or longest)
