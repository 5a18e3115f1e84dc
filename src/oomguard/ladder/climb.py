"""Chooses the next strategy on the ladder, with the reasons why strategies were skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from oomguard.evidence.verdict import OOMS, Cause, Verdict
from oomguard.job.checkpoint import Checkpoint, Continuation, Mode
from oomguard.job.plan import Plan, differences
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Fidelity, Skip, Step, Strategy

#: The six strategies of `--ladder classic`, in order.
CLASSIC = (
    "halve_micro_batch",
    "cut_cutoff_len",
    "freeze_vision_tower_and_projector",
    "switch_to_zero3",
    "enable_qlora",
    "low_cpu_mem_usage",
)


#: Fields of a plan that decide how much of a sample is trained on.
_OF_SAMPLES = frozenset(
    {"sequence_length", "overlong", "image_pixels", "video_pixels", "completion_length"}
)
_RANK = {mode: rank for rank, mode in enumerate(Mode)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """What the ladder has to know of the job's framework; each is pure.

    `normalize` adds the choices that the framework couples to a change; `refusal` says why it
    would refuse a plan; `required_packages` lists what a plan needs beyond the requested one;
    `resume_mode` says what of a checkpoint survives a change of plan, and why not more.
    """

    normalize: Callable[[Job, Plan], Plan]
    refusal: Callable[[Job, Plan], str | None]
    required_packages: Callable[[Job, Plan], frozenset[str]]
    resume_mode: Callable[[Job, Plan, Plan], tuple[Mode, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Where a climb ends: a plan with the step that led to it, or neither."""

    plan: Plan | None = None
    step: Step | None = None
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The strategies of a run in their order, and the highest cost that is allowed.

    `known` are all strategies in their order, with those that --ladder leaves out.
    """

    strategies: tuple[Strategy, ...]
    framework: Framework
    allow: Fidelity = Fidelity.NEW_RECIPE
    known: tuple[Strategy, ...] = ()

    def prepare(self, job: Job) -> tuple[Plan, tuple[Step, ...]]:
        """Return the first plan: the one asked for, after the preflight strategies."""
        plan, steps = job.asked, []
        for strategy in self.strategies:
            changed = strategy.applied(job, plan) if strategy.preflight else None
            if isinstance(changed, Plan):
                steps.append(_step(strategy, job, plan, changed))
                plan = changed
        return plan, tuple(steps)

    def climb(
        self,
        job: Job,
        tried: Sequence[Plan],
        taken: Sequence[str],
        why: Verdict,
        *,
        trained: bool = False,
        ruled_out: Mapping[str, str] = MappingProxyType({}),
        changes_math: Callable[[Plan], str | None] = lambda _: None,
    ) -> Rung:
        """Find the first strategy that applies to `why` and yields an untried plan.

        `tried` are the plans so far, the failed one last; `taken` the ids of the steps that led
        to it; `trained` says that work would be lost by beginning again. `ruled_out` says which
        strategies cannot help, and why; `changes_math` returns why another micro batch is not the
        same math for this job, as far as it was seen. Where the phase is only a default,
        strategies for it come first, and those for other phases after them.
        """
        known = dict(ruled_out)
        if trained:
            lossy = (one.id for one in self.strategies if one.fresh)
            known |= dict.fromkeys(lossy, "it would discard training progress")
        rung = Rung()
        for any_phase in (False,) if why.phase_known else (False, True):
            rung = self._climb(
                job, tried, taken, why, known, any_phase=any_phase, changes_math=changes_math
            )
            if rung.plan is not None:
                break
        return rung

    def _climb(
        self,
        job: Job,
        tried: Sequence[Plan],
        taken: Sequence[str],
        why: Verdict,
        ruled_out: Mapping[str, str],
        *,
        any_phase: bool,
        changes_math: Callable[[Plan], str | None],
    ) -> Rung:
        skipped: list[Skip] = []
        for strategy in self.strategies:
            if strategy.preflight:
                continue
            outcome = ruled_out.get(strategy.id) or self._consider(
                strategy, job, tried, taken, why, any_phase=any_phase, changes_math=changes_math
            )
            if isinstance(outcome, Plan):
                step = _step(strategy, job, tried[-1], outcome)
                if outcome.micro_batch != tried[-1].micro_batch:
                    step = _regraded(step, changes_math(outcome))
                return Rung(plan=outcome, step=step, skipped=tuple(skipped))
            skipped.append(Skip(strategy=strategy.id, reason=outcome))
        return Rung(skipped=tuple(skipped))

    def retake(self, job: Job, path: Sequence[str]) -> tuple[Plan, tuple[Step, ...]] | None:
        """Return the plan after the strategies in `path`, starting from the requested one.

        A rung that finds nothing left to change falls away. None where the framework refuses
        what comes out.
        """
        known = {s.id: s for s in self.strategies if not s.preflight}
        plan, prepared = self.prepare(job)
        steps = list(prepared)
        for strategy in (known[name] for name in path if name in known):
            changed = strategy.applied(job, plan)
            if isinstance(changed, Plan):
                settled = self.framework.normalize(job, changed)
                steps.append(_step(strategy, job, plan, settled))
                plan = settled
        admitted = self._admit(job, (), plan)
        return (plan, tuple(steps)) if isinstance(admitted, Plan) else None

    def begin(
        self, job: Job, plan: Plan, written: Sequence[tuple[Checkpoint, Plan]], *, damaged: bool
    ) -> Continuation:
        """Return how `plan` begins: from the latest checkpoint that keeps the most under it.

        `written` pairs the whole checkpoints of this run with the plans they were written under;
        `damaged` says whether it left others.
        """
        best = Continuation(
            mode=Mode.RESTART, reason="this run has no complete checkpoint", hide=damaged
        )
        for checkpoint, under in sorted(written, key=lambda pair: pair[0].step):
            mode, reason = self.framework.resume_mode(job, under, plan)
            if _RANK[mode] >= _RANK[best.mode]:
                kept = checkpoint if mode is not Mode.RESTART else None
                best = Continuation(mode=mode, checkpoint=kept, reason=reason, hide=kept is None)
        return best

    def _consider(  # noqa: PLR0911  one for each reason
        self,
        strategy: Strategy,
        job: Job,
        tried: Sequence[Plan],
        taken: Sequence[str],
        why: Verdict,
        *,
        any_phase: bool,
        changes_math: Callable[[Plan], str | None],
    ) -> Plan | str:
        if not strategy.cures(job, why, any_phase=any_phase):
            return f"does not apply to a {OOMS.get(why.kind, why.kind.value)} in {why.phase.value}"
        fidelity = strategy.fidelity_for(job)
        if fidelity.cost > self.allow.cost:
            return f"is {fidelity.value}, but only {self.allow.value} is allowed"
        if strategy.id in taken and not strategy.repeat:
            return "taken already"
        changed = strategy.applied(job, tried[-1])
        if isinstance(changed, str):
            return changed
        if why.cause is Cause.GROWTH and _cuts_data(tried[-1], changed):
            return (
                "memory grows from step to step, so less data per sample would only delay the end"
            )
        plan = self.framework.normalize(job, changed)
        other = changes_math(plan) if plan.micro_batch != tried[-1].micro_batch else None
        if other is not None and self.allow is not Fidelity.NEW_RECIPE:
            return f"is a new recipe here ({other}), but only {self.allow.value} is allowed"
        return self._admit(job, tried, plan)

    def _admit(self, job: Job, tried: Sequence[Plan], plan: Plan) -> Plan | str:
        if plan in tried:
            return "it leads to a plan that was tried already"
        if plan.rank_batch * job.world.size != job.global_batch:
            return f"it would change the global batch of {job.global_batch}"
        refusal = self.framework.refusal(job, plan)
        if refusal:
            return f"refused by {job.framework}: {refusal}"
        missing = sorted(self.framework.required_packages(job, plan) - job.packages)
        if missing:
            names = " ".join(missing)
            return f"the job's Python lacks {names}: {job.python} -m pip install {names}"
        return plan


def _cuts_data(before: Plan, after: Plan) -> bool:
    """Return whether a change makes samples smaller than they were requested."""
    return any(change.field in _OF_SAMPLES for change in differences(before, after))


def _regraded(step: Step, why: str | None) -> Step:
    """Make a step a new recipe, if there is a reason."""
    if why is None:
        return step
    summary = f"{step.summary}; not the same math: {why}"
    return replace(step, fidelity=Fidelity.NEW_RECIPE, summary=summary)


def _step(strategy: Strategy, job: Job, before: Plan, after: Plan) -> Step:
    told = strategy.tell(job, before, after)
    return Step(
        strategy=strategy.id,
        summary=f"{strategy.summary}; {told}" if told else strategy.summary,
        fidelity=strategy.fidelity_for(job),
        changes=differences(before, after),
    )
