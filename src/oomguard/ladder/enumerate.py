"""The whole ladder at once: every plan that repeated OOMs would lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder, Rung
from oomguard.ladder.strategy_contract import Skip, Step

#: A ladder of strategies that halve takes fewer steps than this from any size there is.
MOST_RUNGS = 100

DEVICE = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
HOST = Verdict(kind=Kind.HOST_OOM, phase=Phase.LOAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkedRung:
    """One strategy on the way: the plan that it leads to, or why it is never taken."""

    strategy: str
    plan: Plan | None = None
    step: Step | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The first plan, what was changed for it before any attempt, and the strategies after it."""

    first: Plan
    prepared: tuple[Step, ...]
    rungs: tuple[WalkedRung, ...]


def walk(job: Job, ladder: Ladder, why: Callable[[Plan], Verdict] = lambda _: DEVICE) -> Walk:
    """Climb until no strategy is left; `why` is the failure to expect of the plan so far.

    A strategy that is never taken stands where the ladder has it, with the first reason given.
    """
    first, prepared = ladder.prepare(job)
    tried, taken, reasons = [first], list[Step](), dict[str, str]()
    for _ in range(MOST_RUNGS):
        rung = _climb(job, ladder, tried, taken, why(tried[-1]))
        _note(rung.skipped, reasons)
        if rung.plan is None or rung.step is None:
            break
        tried.append(rung.plan)
        taken.append(rung.step)
    climbed = [
        WalkedRung(strategy=step.strategy, plan=plan, step=step)
        for step, plan in zip(taken, tried[1:], strict=True)
    ]
    order = [strategy.id for strategy in ladder.strategies]
    return Walk(first=first, prepared=prepared, rungs=_with_skipped(climbed, reasons, order))


def _climb(job: Job, ladder: Ladder, tried: list[Plan], taken: list[Step], why: Verdict) -> Rung:
    """Return the next step; if nothing helps the host, the device's strategies are still shown."""
    ids = [step.strategy for step in taken]
    rung = ladder.climb(job, tried, ids, why)
    return rung if rung.plan is not None or why == DEVICE else ladder.climb(job, tried, ids, DEVICE)


def _note(skipped: tuple[Skip, ...], reasons: dict[str, str]) -> None:
    for skip in skipped:
        reasons.setdefault(skip.strategy, skip.reason)


def _with_skipped(
    climbed: list[WalkedRung], reasons: dict[str, str], order: list[str]
) -> tuple[WalkedRung, ...]:
    names = {rung.strategy for rung in climbed}
    left = [name for name in order if name in reasons and name not in names]
    rungs: list[WalkedRung] = []
    for rung in climbed:
        while left and order.index(left[0]) < order.index(rung.strategy):
            rungs.append(_skipped(left.pop(0), reasons))
        rungs.append(rung)
    return (*rungs, *(_skipped(name, reasons) for name in left))


def _skipped(name: str, reasons: dict[str, str]) -> WalkedRung:
    return WalkedRung(strategy=name, skipped=reasons[name])
