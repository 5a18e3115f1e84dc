"""Optimizer steps that the monitor ran again in smaller parts after an OOM, without a relaunch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from oomguard.job.plan import Plan
from oomguard.ladder.strategy_contract import divisor_at_most

#: The strategy that splitting carries out inside the process.
STRATEGY = "halve_micro_batch"
#: The strategy that divides batches before they fail.
BOUND = "bound_tokens"
#: Steps that are listed one by one; all are counted.
LISTED = 100
#: Spans that are kept to be joined with those of other ranks, whose reports come seconds later.
RECENT = 256

#: The first and the last of successive optimizer steps.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStep:
    """An optimizer step that ran out of memory `failed` times and then passed in `parts`.

    `seconds` is what the failures cost. `rows` x `width` is the part of the widest row, and
    `tokens` the whole batch with its padding. `refused` are the fewest tokens that ran out of
    memory, 0 if none did or it is not known.
    """

    step: int
    rank: int | None
    failed: int
    parts: int
    rows: int
    width: int
    tokens: int
    seconds: float
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingRows:
    """The most `rows` of the widest divided batch that pass at once on one rank.

    `step` is the last one that showed it. What as many tokens refute later does not count.
    """

    rows: int
    width: int
    step: int

    def after(self, one: SplitStep) -> FittingRows:
        """Return what passes after a report of one more step."""
        if 0 < one.refused <= self.rows * self.width:  # from now on only what this step shows
            width = max(self.width, one.width)
            return FittingRows(
                rows=max(1, one.rows * one.width // width), width=width, step=one.step
            )
        if (one.width, one.rows) >= (self.width, self.rows):
            return FittingRows(rows=one.rows, width=one.width, step=one.step)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The split steps of one attempt: `steps` of them, `failed` errors, `seconds` lost to these.

    A step that several ranks split counts once, and costs the seconds of the slowest of them.
    `rows` of `width` tokens are the most rows of the widest batch that pass at once on every rank
    that divided it, as step `last` was the last one to show; `at` has the steps that ran out of
    memory, at most `LISTED` of them. Others were split beforehand. `evaluations` are batches of
    evaluations that ran out of memory: their `failed` and `seconds` are counted as well.
    """

    steps: int = 0
    failed: int = 0
    seconds: float = 0.0
    rows: int = 0
    width: int = 0
    last: int = 0
    at: tuple[SplitStep, ...] = ()
    evaluations: tuple[SplitStep, ...] = ()

    def with_step(
        self, one: SplitStep, passed: Iterable[FittingRows], *, steps: int, seconds: float
    ) -> Splits:
        """Return the splits after a report of one step, with what has `passed` on each rank.

        `steps` and `seconds` are those in all.
        """
        fewest = min(passed, key=lambda found: (-found.width, found.rows))
        listed = one.failed and len(self.at) < LISTED
        return replace(
            self,
            steps=steps,
            failed=self.failed + one.failed,
            seconds=seconds,
            rows=fewest.rows,
            width=fewest.width,
            last=fewest.step,
            at=(*self.at, one) if listed else self.at,
        )

    def with_evaluation(self, one: SplitStep, *, seconds: float) -> Splits:
        """Return the splits after a report of a batch of an evaluation, with `seconds` in all."""
        listed = len(self.evaluations) < LISTED
        return replace(
            self,
            failed=self.failed + one.failed,
            seconds=seconds,
            evaluations=(*self.evaluations, one) if listed else self.evaluations,
        )

    @property
    def evaluation_rows(self) -> int | None:
        """Return the most rows of an evaluation that pass at once, None if all did."""
        return min((one.rows for one in self.evaluations), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTally:
    """What the ranks of an attempt reported, added up to `splits`.

    `spans` are the latest steps that any of them split, `settled` counts those before them. `lost`
    has the seconds of each rank by the step, and whether it was an evaluation before that step;
    `passed` has what passes at once on each rank.
    """

    splits: Splits = field(default_factory=Splits)
    spans: tuple[Span, ...] = ()
    settled: int = 0
    lost: Mapping[tuple[int, bool], Mapping[int | None, float]] = field(default_factory=dict)
    passed: Mapping[int | None, FittingRows] = field(default_factory=dict)

    def with_step(self, one: SplitStep, spans: Iterable[Span]) -> SplitTally:
        """Return the tally after a report of one step, the last of those in `spans`."""
        joined = tuple(_joined((*self.spans, *spans)))
        older, recent = joined[:-RECENT], joined[-RECENT:]
        settled, lost = self.settled + _steps_in(older), self._lost(one, evaluation=False)
        steps = settled + _steps_in(recent)
        shown = FittingRows(rows=one.rows, width=one.width, step=one.step)
        own = self.passed.get(one.rank)
        passed = {**self.passed, one.rank: own.after(one) if own is not None else shown}
        splits = self.splits.with_step(one, passed.values(), steps=steps, seconds=_slowest(lost))
        return SplitTally(splits=splits, spans=recent, settled=settled, lost=lost, passed=passed)

    def with_evaluation(self, one: SplitStep) -> SplitTally:
        """Return the tally after a report of a batch of an evaluation."""
        lost = self._lost(one, evaluation=True)
        splits = self.splits.with_evaluation(one, seconds=_slowest(lost))
        return replace(self, splits=splits, lost=lost)

    def _lost(
        self, one: SplitStep, *, evaluation: bool
    ) -> Mapping[tuple[int, bool], Mapping[int | None, float]]:
        """Return the seconds lost, with those of a report."""
        if not one.seconds:
            return self.lost
        key = (one.step, evaluation)
        ranks = self.lost.get(key, {})
        return {**self.lost, key: {**ranks, one.rank: ranks.get(one.rank, 0.0) + one.seconds}}


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield the same steps in as few spans as possible, in their order."""
    begun: Span | None = None
    for first, last in sorted(spans):
        if begun is not None and first <= begun[1] + 1:
            begun = (begun[0], max(begun[1], last))
        elif first <= last:
            if begun is not None:
                yield begun
            begun = (first, last)
    if begun is not None:
        yield begun


def _steps_in(spans: Iterable[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _slowest(lost: Mapping[tuple[int, bool], Mapping[int | None, float]]) -> float:
    """Return the seconds of the slowest rank in each step, in all."""
    return round(sum(max(ranks.values()) for ranks in lost.values()), 3)


def without_splits(plan: Plan, splits: Splits | None, *, longest: int | None = None) -> Plan:
    """Return the plan whose whole micro batches are as small as the parts that passed.

    As many rows of the widest batch fit at once; the global batch stays. A batch of an evaluation
    is no larger than what passed of one. Micro batches of the `longest` sample of the data, which
    is cut to the limit already, have no more tokens than what passed, and than the bound if any.
    """
    splits = splits or Splits()
    passed = splits.evaluation_rows
    if passed is not None and plan.eval_batch is not None:
        plan = replace(plan, eval_batch=min(plan.eval_batch, passed))
    rows, widest = splits.rows or plan.micro_batch, max(splits.width, longest or 0, 1)
    if splits.rows:
        rows = max(1, splits.rows * splits.width // widest)
    if plan.token_bound is not None:
        rows = min(rows, max(1, plan.token_bound // widest))
        plan = replace(plan, token_bound=None)
    if rows >= plan.micro_batch:
        return plan
    micro = divisor_at_most(plan.rank_batch, rows)
    return replace(plan, micro_batch=micro, accumulation=plan.rank_batch // micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitVariant:
    """The plan that ran, as the other way to train beside the final one: only with oomguard.

    Of its `optimizer_steps` only `split_steps` ran in parts, and `seconds` were lost to errors;
    each other step takes `passes` forward and backward passes, each of the final plan
    `final_passes`.
    """

    plan: Plan
    optimizer_steps: int
    split_steps: int
    seconds: float
    passes: int
    final_passes: int


def split_variant(
    plan: Plan, final: Plan, splits: Splits | None, optimizer_steps: int
) -> SplitVariant | None:
    """Return the plan that ran if the `final` one, without splits, is much slower; else None.

    It is where all steps take at least twice as many passes, and less than half of them need that.
    """
    splits = splits or Splits()
    if final.accumulation < 2 * plan.accumulation:
        return None
    if 2 * splits.steps >= optimizer_steps:
        return None
    return SplitVariant(
        plan=plan,
        optimizer_steps=optimizer_steps,
        split_steps=splits.steps,
        seconds=splits.seconds,
        passes=plan.accumulation,
        final_passes=final.accumulation,
    )


def halvings(plan: Plan, final: Plan) -> tuple[str, ...]:
    """Return the strategy once for each time that leads from a plan to the `final` one.

    Not where tokens are bounded: that is how the next run begins as well.
    """
    if plan.token_bound is not None:
        return ()
    target, micro, times = final.micro_batch, plan.micro_batch, 0
    while micro > target:
        micro, times = divisor_at_most(plan.rank_batch, micro // 2), times + 1
    return (STRATEGY,) * times
