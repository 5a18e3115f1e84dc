"""Revert changes of a plan that fits which may turn out to be unnecessary. Pure.

Strategies are applied in the order of the ladder, so the last one may have sufficed alone: where
QLoRA fits, the sequences may not have had to be cut. Each candidate leaves some of the applied
strategies out, the most expensive first. One with no more strategies than a plan that ran out of
memory is not tried: it needs at least as much. Nor is one that is known to be too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder
from oomguard.ladder.shorten import cheaper_paths, without
from oomguard.run.attempt import AttemptSpec, Purpose
from oomguard.run.enough import too_little
from oomguard.run.state import Attempt, RunRecord

#: The first step proves nothing: the optimizer state is allocated only after it.
PROOF_STEPS = 2
#: Beyond this many steps, proving that a plan fits would take too long.
PROOF_STEPS_AT_MOST = 50
#: For this many steps a proven attempt is checked for a trial; later the answer stays the same.
ASKED_STEPS = 10
#: The most trials in one run.
MOST_TRIALS = 12
#: The strategies that `--grow` applies fully at the start and reverts first.
GROWN = ("cut_cutoff_len", "halve_micro_batch")


def proof_steps(record: RunRecord) -> int | None:
    """Return after how many optimizer steps an attempt counts as fitting, None if too many.

    It has to outlast every attempt that ran out of memory: a late OOM recurs late.
    """
    late = max((attempt.steps_done for attempt in record.attempts if attempt.ran_out), default=0)
    needed = max(PROOF_STEPS, late + 1)
    return needed if needed <= PROOF_STEPS_AT_MOST else None


def is_proven(record: RunRecord) -> bool:
    """Return whether the latest attempt has proven to fit and may end for a trial."""
    limits, attempt, needed = record.limits, record.last, proof_steps(record)
    if limits is None or not (limits.relax or limits.grow) or needed is None:
        return False
    sound = attempt.suspected_t is None and not attempt.caught
    just_now = needed <= attempt.steps_done <= needed + ASKED_STEPS
    apart = attempt.spec.probe is not None or attempt.spec.purpose is Purpose.BEST
    return sound and just_now and not apart


def is_short(record: RunRecord) -> bool:
    """Return whether the latest attempt was completed before it could be stopped for a trial.

    Training so few steps again costs no more than a trial does.
    """
    limits, attempt, needed = record.limits, record.last, proof_steps(record)
    if limits is None or not (limits.relax or limits.grow) or needed is None:
        return False
    ended = attempt.completed and attempt.spec.purpose is not Purpose.BEST
    return ended and 0 < attempt.steps_done <= needed + ASKED_STEPS


def next_trial(record: RunRecord, ladder: Ladder, base: Attempt) -> AttemptSpec | None:
    """Return the next trial: fewer changes than `base`, which fits; None if none is left."""
    job, limits = record.job, record.limits
    trials = sum(1 for attempt in record.attempts if attempt.spec.purpose is Purpose.TRIAL)
    if job is None or limits is None or trials >= MOST_TRIALS:
        return None
    tried = [attempt.spec.plan for attempt in record.attempts]
    failed = [attempt for attempt in record.attempts if attempt.ran_out]
    for left in _shorter(job, base.spec.path, ladder, relax=limits.relax, grow=limits.grow):
        trial = _trial(job, ladder, base, left)
        if trial is None or trial.plan in tried:
            continue
        if not any(_will_fail(record, over, trial) for over in failed):
            return trial
    return None


def smallest(job: Job, ladder: Ladder) -> AttemptSpec:
    """Return the smallest plan, which `--grow` starts with.

    Both sizes are halved as far as their strategies go, if the ladder has and allows them.
    """
    plan, steps = ladder.prepare(job)
    path: tuple[str, ...] = ()
    costs = {strategy.id: strategy.fidelity_for(job) for strategy in ladder.strategies}
    for name in GROWN:
        while name in costs and costs[name].cost <= ladder.allow.cost:
            taken = ladder.retake(job, (*path, name))
            if taken is None or taken[0] == plan:
                break
            (plan, steps), path = taken, (*path, name)
    return AttemptSpec(plan=plan, steps=steps, path=path)


def may_resume(earlier: Attempt, path: tuple[str, ...]) -> bool:
    """Return whether a plan may resume what an attempt trained with no changes beyond its own."""
    return _holds(Counter(path), Counter(earlier.spec.path))


def _trial(job: Job, ladder: Ladder, base: Attempt, left: tuple[str, ...]) -> AttemptSpec | None:
    retaken = ladder.retake(job, left)
    if retaken is None:
        return None
    plan, steps = retaken
    path = tuple(step.strategy for step in steps if step.strategy in left)
    undone = Counter(base.spec.path) - Counter(path)
    return AttemptSpec(plan=plan, path=path, undone=tuple(undone.elements()), purpose=Purpose.TRIAL)


def _shorter(
    job: Job, path: tuple[str, ...], ladder: Ladder, *, relax: bool, grow: bool
) -> Iterator[tuple[str, ...]]:
    """Yield shorter paths: one level less of each size that grows, then without a strategy."""
    if grow:
        yield from (without(path, name, 1) for name in GROWN if name in path)
    if relax:
        yield from cheaper_paths(job, path, ladder)


def _will_fail(record: RunRecord, failed: Attempt, trial: AttemptSpec) -> bool:
    """Return whether a trial needs as much as an attempt that ran out, or is too little for it."""
    fewer = _holds(Counter(failed.spec.path), Counter(trial.path))
    return fewer or too_little(record, failed, trial.plan) is not None


def _holds(more: Counter[str], fewer: Counter[str]) -> bool:
    return all(count <= more[name] for name, count in fewer.items())
