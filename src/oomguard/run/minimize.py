"""Give back: which changes of a plan that fits may turn out to be unnecessary. Pure.

A walk takes its rungs in the order of the ladder, so the rung that made the job fit may have
needed none of those before it: where QLoRA fits, the sequences may not have had to be cut. Each
candidate is the walk again with some of its rungs left out, the dearest first; one that holds no
more rungs than a plan that ran out is not tried, since it needs no less memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder
from oomguard.run.attempt import AttemptSpec, Purpose
from oomguard.run.state import Attempt, RunRecord

#: A first step that passes proves nothing: the optimizer's state exists only after it.
PROOF_STEPS = 2
#: Where a plan ran out later than this, showing that another fits would cost too much.
PROOF_STEPS_AT_MOST = 50
#: So many steps long it is asked whether a proven attempt may end; later nothing has changed.
ASKED_STEPS = 10
#: Trials of one run.
MOST_TRIALS = 12
#: What `--grow` begins with the smallest of, and gives back first.
GROWN = ("cut_cutoff_len", "halve_micro_batch")


def proof_steps(record: RunRecord) -> int | None:
    """Say after how many optimizer steps an attempt counts as fitting, None if that is too many.

    It takes more steps than any attempt that ran out: a late shortage comes back late.
    """
    late = max((attempt.steps_done for attempt in record.attempts if attempt.ran_out), default=0)
    needed = max(PROOF_STEPS, late + 1)
    return needed if needed <= PROOF_STEPS_AT_MOST else None


def is_proven(record: RunRecord) -> bool:
    """Return whether the newest attempt is seen to fit and may end for a trial of another plan."""
    limits, attempt, needed = record.limits, record.last, proof_steps(record)
    if limits is None or not (limits.relax or limits.grow) or needed is None:
        return False
    sound = attempt.suspected_t is None and not attempt.caught
    just_now = needed <= attempt.steps_done <= needed + ASKED_STEPS
    apart = attempt.spec.probe is not None or attempt.spec.purpose is Purpose.BEST
    return sound and just_now and not apart


def next_trial(record: RunRecord, ladder: Ladder, base: Attempt) -> AttemptSpec | None:
    """Give the first plan to try that costs less than `base`, which fits; None if there is none."""
    job, limits = record.job, record.limits
    trials = sum(1 for attempt in record.attempts if attempt.spec.purpose is Purpose.TRIAL)
    if job is None or limits is None or trials >= MOST_TRIALS:
        return None
    tried = [attempt.spec.plan for attempt in record.attempts]
    failed = [Counter(attempt.spec.path) for attempt in record.attempts if attempt.ran_out]
    for left in _shorter(base.spec.path, ladder, relax=limits.relax, grow=limits.grow):
        trial = _trial(job, ladder, base, left)
        if trial is None or trial.plan in tried:
            continue
        if not any(_holds(over, Counter(trial.path)) for over in failed):
            return trial
    return None


def smallest(job: Job, ladder: Ladder) -> AttemptSpec:
    """Return the smallest plan, which `--grow` begins with.

    Both sizes are halved as far as their strategies go, where the ladder has and allows them.
    """
    plan, steps = ladder.prepare(job)
    path: tuple[str, ...] = ()
    costs = {strategy.id: strategy.fidelity for strategy in ladder.strategies}
    for name in GROWN:
        while name in costs and costs[name].cost <= ladder.allow.cost:
            taken = ladder.retake(job, (*path, name))
            if taken is None or taken[0] == plan:
                break
            (plan, steps), path = taken, (*path, name)
    return AttemptSpec(plan=plan, steps=steps, path=path)


def may_resume(earlier: Attempt, path: tuple[str, ...]) -> bool:
    """Whether an attempt was trained at no higher cost than a plan that would go on from it."""
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
    path: tuple[str, ...], ladder: Ladder, *, relax: bool, grow: bool
) -> Iterator[tuple[str, ...]]:
    """Leave rungs out: one level of each size that grows, else all of a rung before some of it."""
    if grow:
        yield from (_without(path, name, 1) for name in GROWN if name in path)
    if not relax:
        return
    costs = {strategy.id: strategy.fidelity.cost for strategy in ladder.strategies}
    dear = [s.id for s in reversed(ladder.strategies) if s.id in path and s.fidelity.cost]
    for name in sorted(dear, key=lambda one: -costs[one]):
        yield from (_without(path, name, count) for count in range(path.count(name), 0, -1))


def _without(path: tuple[str, ...], name: str, count: int) -> tuple[str, ...]:
    """Leave out the last `count` times that a name stands in a path."""
    places = [place for place, one in enumerate(path) if one == name][-count:]
    return tuple(one for place, one in enumerate(path) if place not in places)


def _holds(more: Counter[str], fewer: Counter[str]) -> bool:
    return all(count <= more[name] for name, count in fewer.items())
