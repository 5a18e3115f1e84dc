"""Optimizer steps that the monitor ran again in smaller parts after an OOM, without a relaunch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oomguard.job.plan import Plan
from oomguard.ladder.strategy_contract import divisor_at_most

#: The strategy that splitting carries out inside the process.
STRATEGY = "halve_micro_batch"
#: Steps that are listed one by one; all are counted.
LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStep:
    """An optimizer step that ran out of memory `failed` times and then passed in `parts`.

    `seconds` is what the failures cost. `rows` x `width` is the part of the widest row, and
    `tokens` the whole batch with its padding.
    """

    step: int
    rank: int | None
    failed: int
    parts: int
    rows: int
    width: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The split steps of one attempt: `steps` of them, `failed` errors, `seconds` lost to these.

    `rows` of `width` tokens are the most rows of the widest batch that passed at once; `at` has
    the steps that ran out of memory, at most `LISTED` of them. Others were split beforehand.
    """

    steps: int = 0
    failed: int = 0
    seconds: float = 0.0
    rows: int = 0
    width: int = 0
    at: tuple[SplitStep, ...] = ()

    def with_step(self, one: SplitStep, *, steps: int) -> Splits:
        """Return the splits after a report of one step, the last of `steps` split ones."""
        wider = one.width > self.width
        rows = max(one.rows, self.rows if one.width == self.width else 0)
        listed = one.failed and len(self.at) < LISTED
        return replace(
            self,
            steps=self.steps + steps,
            failed=self.failed + one.failed,
            seconds=round(self.seconds + one.seconds, 3),
            rows=rows if wider or one.width == self.width else self.rows,
            width=max(self.width, one.width),
            at=(*self.at, one) if listed else self.at,
        )


def without_splits(plan: Plan, splits: Splits | None) -> Plan:
    """Return the plan whose whole micro batches are as small as the parts that passed.

    As many rows of the widest batch fit at once; the global batch stays.
    """
    if splits is None or not splits.rows or splits.rows >= plan.micro_batch:
        return plan
    micro = divisor_at_most(plan.rank_batch, splits.rows)
    return replace(plan, micro_batch=micro, accumulation=plan.rank_batch // micro)


def halvings(plan: Plan, splits: Splits | None) -> tuple[str, ...]:
    """Return the strategy once for each time that leads from a plan to the one without splits."""
    target, micro, times = without_splits(plan, splits).micro_batch, plan.micro_batch, 0
    while micro > target:
        micro, times = divisor_at_most(plan.rank_batch, micro // 2), times + 1
    return (STRATEGY,) * times
