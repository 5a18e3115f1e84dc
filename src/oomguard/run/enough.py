"""What an attempt lacked when it ran out, and which plans cannot free that. Pure.

All that is known is a bound: the job needed at least what it held and what it asked for last. A
plan is not launched only if even the least that it may need, with all doubts in its favour, is more
than there is. Where one of the figures is missing, it is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from oomguard.estimate.correct import COUNTED_DOUBT, LEAST, LOADED, MOST
from oomguard.estimate.memory import COUNTED, NOT_ALLOCATED, Term
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Witness
from oomguard.job.plan import Plan, differences
from oomguard.ladder.climb import Rung
from oomguard.ladder.strategy_contract import TRAINING, Skip, Step
from oomguard.run.events import Predicted
from oomguard.run.no_use import root_finding
from oomguard.run.state import Attempt, RunRecord
from oomguard.units import show_bytes

#: A failed allocation is printed with two decimals.
_PRINTED = 0.99
#: With these causes the job may fit as it is.
_OTHER_CAUSES = frozenset({Cause.FRAGMENTATION, Cause.GROWTH, Cause.OTHER_PROCESS})
_SIZES = frozenset({"micro_batch", "accumulation", "sequence_length"})
_UNTRIED = "nothing left is estimated to save enough, so all of it is tried together"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """What one process needed at least when it ran out, and what there was for it.

    `failed_bytes` were asked for in one allocation, and are part of `needed_bytes`. `held` are the
    terms of the estimate that were in memory for certain; None outside of a training step, which is
    all that is estimated.
    """

    needed_bytes: int
    failed_bytes: int
    available_bytes: int
    held: frozenset[Term] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Where a climb ends that leaves plans unlaunched; each of them has its reason."""

    plan: Plan | None
    steps: tuple[Step, ...]
    not_launched: tuple[Skip, ...]
    skipped: tuple[Skip, ...]


def climb_far_enough(
    climb: Callable[[Sequence[Plan], Sequence[str]], Rung], weigh: Callable[[Plan], str | None]
) -> Reached:
    """Climb on from each plan that saves too little, as if it had been tried.

    `climb` takes the plans and the strategies since the failed attempt; `weigh` returns why a plan
    is too little. Only an attempt proves that: where every plan is, the last one is still tried.
    """
    plans, steps, passed = list[Plan](), list[Step](), list[Skip]()
    while True:
        rung = climb(plans, [step.strategy for step in steps])
        if rung.plan is None or rung.step is None:
            break
        plans.append(rung.plan)
        steps.append(rung.step)
        reason = weigh(rung.plan)
        if reason is None:
            break
        passed.append(Skip(strategy=rung.step.strategy, reason=reason))
    if steps and len(passed) == len(steps):
        passed.pop()
        steps[-1] = replace(steps[-1], summary=f"{steps[-1].summary}; {_UNTRIED}")
    taken = {step.strategy for step in steps}
    return Reached(
        plan=plans[-1] if plans else None,
        steps=tuple(steps),
        not_launched=tuple(passed),
        skipped=tuple(skip for skip in rung.skipped if skip.strategy not in taken),
    )


def too_little(record: RunRecord, failed: Attempt, plan: Plan) -> str | None:
    """Return why a plan cannot free what an attempt lacked, None if it may."""
    lacked = lack(record, failed)
    if lacked is None or any(len(a.spec.steps) > 1 and a.refused_step for a in record.attempts):
        return None  # which of several steps the framework refused is not known
    least = int(lacked.failed_bytes * least_share(failed.spec.plan, plan))
    before, after = record.predicted_for(failed.spec.plan), record.predicted_for(plan)
    if before and after and before.covers_all and after.covers_all:
        least = max(least, least_needed(lacked, before, after) or 0)
    if least <= lacked.available_bytes:
        return None
    saved = show_bytes(max(0, lacked.needed_bytes - least))
    missing = show_bytes(lacked.needed_bytes - lacked.available_bytes)
    return f"it can save at most {saved} of at least {missing} that are missing"


def lack(record: RunRecord, failed: Attempt) -> Lack | None:
    """Return what an attempt lacked; None where it is not known, or may not be its own need."""
    root = root_finding(failed.verdict) if failed.verdict else None
    if root is None or root.witness is not Witness.INSIDE or not root.requested_bytes:
        return None
    failed_bytes = int(root.requested_bytes * _PRINTED)
    available = root.capacity_bytes if root.kind is Kind.DEVICE_OOM else _host_cap(record, root)
    needed = (root.allocated_bytes or 0) + failed_bytes
    if root.cause in _OTHER_CAUSES or available is None or needed <= available:
        return None
    return Lack(
        needed_bytes=needed,
        failed_bytes=failed_bytes,
        available_bytes=available,
        held=_held(failed, root),
    )


def least_share(before: Plan, after: Plan) -> float:
    """Return the least share of an allocation that another plan may leave of it.

    A matrix of all samples by all samples, or tokens by tokens, shrinks with their square. Other
    changes than those of sizes may do away with it.
    """
    if any(change.field not in _SIZES for change in differences(before, after)):
        return 0.0
    tokens = (after.sequence_length or 1) / (before.sequence_length or 1)
    return min(1.0, (after.micro_batch / before.micro_batch * tokens) ** 2)


def least_needed(lacked: Lack, before: Predicted, after: Predicted) -> int | None:
    """Return the least that the failed allocation's process may need under another plan.

    What it needed is shared out between the terms of its estimate, within their doubts, so that
    the other plan shrinks it most. None where the estimate cannot explain it.
    """
    held = lacked.held
    if held is None:
        return None
    terms = [t for t in Term if t not in NOT_ALLOCATED and before.terms.get(t.value)]
    bounds = {term: _bounds(term, before.terms[term.value], held) for term in terms}
    left = lacked.needed_bytes - sum(low for low, _ in bounds.values())
    if left < 0 or lacked.needed_bytes > sum(high for _, high in bounds.values()):
        return None
    least = 0.0
    shares = {term: _share(term, before.terms, after.terms) for term in terms}
    for term in sorted(terms, key=lambda one: shares[one]):
        low, high = bounds[term]
        more = min(left, high - low)
        left -= more
        least += (low + more) * shares[term]
    return int(least)


def _bounds(term: Term, size: int, held: frozenset[Term]) -> tuple[int, int]:
    """Return how little and how much of a term there may have been."""
    high = size * (1 + COUNTED_DOUBT if term in COUNTED else MOST)
    return int(size * (1 - COUNTED_DOUBT)) if term in held else 0, int(high)


def _share(term: Term, before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Return the least share of a term that another plan may leave of it."""
    share = after.get(term.value, 0) / before[term.value]
    if share >= 1:
        return 1.0
    return share * (1 - COUNTED_DOUBT if term in COUNTED else LEAST)


def _host_cap(record: RunRecord, root: Finding) -> int | None:
    return record.limits.host_memory_bytes if record.limits and root.kind is Kind.HOST_OOM else None


def _held(failed: Attempt, root: Finding) -> frozenset[Term] | None:
    """Return what was in memory for certain: the optimizer's state from the second step on."""
    if not root.phase_known or root.phase not in TRAINING - {Phase.UNKNOWN}:
        return None
    return frozenset(LOADED) | (frozenset({Term.OPTIMIZER}) if failed.steps_done else frozenset())
