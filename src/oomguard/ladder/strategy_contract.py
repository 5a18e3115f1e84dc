"""A strategy: what it changes and at which cost; and what it did when it was taken or skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from oomguard.evidence.verdict import Cause, Kind, Phase, Verdict
from oomguard.job.plan import (
    Change,
    Overlong,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job


class Fidelity(str, Enum):
    """What a change costs in training results, the lowest cost first."""

    SAME_MATH = "same_math"  # the same loss up to rounding
    SAME_RECIPE = "same_recipe"  # the same objective, other numerics
    NEW_RECIPE = "new_recipe"  # shorter sequences, frozen parts, a 4-bit base

    @property
    def cost(self) -> int:
        """The place in the order of cost."""
        return list(Fidelity).index(self)


SAME_MATH = Fidelity.SAME_MATH
SAME_RECIPE = Fidelity.SAME_RECIPE
NEW_RECIPE = Fidelity.NEW_RECIPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A kind of failure that a strategy applies to, in any phase or only in some."""

    kind: Kind
    phases: frozenset[Phase] | None = None

    def __str__(self) -> str:
        if self.phases is None:
            return self.kind.value
        return self.kind.value + "@" + "+".join(p.value for p in Phase if p in self.phases)

    def cures(self, kind: Kind, phase: Phase) -> bool:
        """Return whether it covers a failure of this kind in this phase."""
        return kind is self.kind and (self.phases is None or phase in self.phases)


#: Phases in which the batch and its activations are in memory. An unknown phase counts.
TRAINING = frozenset({Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One change on the ladder.

    `change` returns the changed plan, or why there is nothing to change in this job; where it
    returns None, the reason is `otherwise`, which lists the cases for the docs. A `repeat` strategy
    is taken again while it changes something. `fewer_processes` says that it saves memory by
    running fewer processes, each with as much. `needs` names the packages that the job's Python
    must have. A `preflight` strategy is applied before the first attempt, whether or not it fails.
    A `fresh` one would discard what was trained, so it is taken only if nothing was. `tell` returns
    what the changed plan means for this job beyond the summary, or an empty string. `cost_for`
    returns the cost for jobs in which it is another than `fidelity`. `worth_a_restart` are the
    causes of an OOM for which a job that goes on in smaller parts may be restarted with it: there
    it may let batches go through whole, and it makes no step slower.
    """

    summary: str
    fidelity: Fidelity
    remedies: frozenset[Remedy]
    change: Callable[[Job, Plan], Plan | str | None]
    otherwise: str = "it would change nothing"
    repeat: bool = False
    preflight: bool = False
    fresh: bool = False
    fewer_processes: bool = False
    needs: tuple[str, ...] = ()
    tell: Callable[[Job, Plan, Plan], str] = lambda _job, _before, _after: ""
    cost_for: Callable[[Job], Fidelity | None] = lambda _job: None
    worth_a_restart: frozenset[Cause] = frozenset()
    id: str = ""  # the file's name without its number; set by the discovery

    def cures(self, job: Job, verdict: Verdict, *, any_phase: bool = False) -> bool:
        """Return whether this strategy applies to that failure of that job, in its phase or any."""
        kinds = {verdict.kind}
        if job.device is Device.CPU and verdict.kind is Kind.HOST_OOM:
            kinds.add(Kind.DEVICE_OOM)  # on a CPU job the host is the device
        return any(
            r.cures(kind, verdict.phase) or (any_phase and kind is r.kind)
            for r in self.remedies
            for kind in kinds
        )

    def applied(self, job: Job, plan: Plan) -> Plan | str:
        """Return the changed plan, or why it stays as it is: a strategy of the user's may fail."""
        try:
            changed: object = self.change(job, plan)
        except Exception as error:  # noqa: BLE001  the ladder has others
            return f"its change failed: {type(error).__name__}: {error}"
        if changed is None or changed == plan:
            return self.otherwise
        if not isinstance(changed, Plan | str):
            return f"its change returned {type(changed).__name__}, which is not a plan"
        return changed

    def fidelity_for(self, job: Job) -> Fidelity:
        """Return what it costs in this job."""
        return self.cost_for(job) or self.fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A strategy that was applied: what it changed, and at which cost."""

    strategy: str
    summary: str
    fidelity: Fidelity
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A strategy that was skipped, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Untried:
    """A step that the options of a run ruled out, and what would allow it."""

    needs: str
    step: Step


def trains_much(job: Job, plan: Plan) -> bool:
    """Return whether optimizer state and gradients are large: not those of a plain adapter."""
    return plan.tuning is not Tuning.LORA or bool(job.trained_embeddings)


def why_not_sharded(job: Job, plan: Plan, *, less: frozenset[Sharding]) -> str | None:
    """Return why a job cannot be sharded further than `less`, None if it can."""
    if plan.sharding is None:
        return "the framework has no such setting"
    if plan.sharding not in less:
        return f"the job is sharded already ({plan.sharding.value})"
    return "there is only one process to share with" if job.world.size == 1 else None


def ready_for_zero3(job: Job, plan: Plan) -> Plan | None:
    """Revert what does not stack with ZeRO-3; None if the user requested it.

    With a quantized base both can need more memory than either (transformers#24395, peft#2016);
    with weights in bf16 alone there is no fp32 copy to shard.
    """
    if job.asked.is_quantized:
        return None
    brought_in = plan.precision is not job.asked.precision
    if plan.precision is Precision.BF16_TRUE and brought_in:
        plan = replace(plan, precision=Precision.BF16_MIXED)
    return replace(plan, quantization=job.asked.quantization)


def quantized_base(
    job: Job, plan: Plan, wanted: Quantization, *, instead_of: frozenset[Quantization]
) -> Plan | str:
    """Quantize the base under a LoRA adapter, with the sharding that was requested.

    ZeRO-3 and a quantized base exclude each other, see `ready_for_zero3`.
    """
    if plan.tuning is not Tuning.LORA:
        return "this is not a LoRA job"
    if plan.quantization is None:
        return "the framework has no such setting"
    if plan.quantization not in instead_of:
        return f"the base is quantized already ({plan.quantization.value})"
    asked = job.asked
    return replace(plan, quantization=wanted, sharding=asked.sharding, offload=asked.offload)


#: Below this many tokens a fine-tune rarely teaches anything; LitGPT's users start there.
SHORTEST = 256


def shorter_sequence(job: Job, plan: Plan) -> int | str:
    """Return half the sequence length, at least 256 tokens; less at once while no sample is cut.

    A multimodal sample must keep its own media tokens (`Image features and image tokens do not
    match` otherwise), so such a job is not cut if their number is unknown. If it cannot be cut,
    the reason is returned.
    """
    if plan.sequence_length is None:
        return "no sequence length is set"
    media = job.lengths.least if job.lengths else 0
    if job.multimodal and media == 0:
        return "how many media tokens a sample has is not known"
    least = max(SHORTEST, media)
    if plan.sequence_length <= least:
        cut = "media tokens would be cut" if media > SHORTEST else f"it is {SHORTEST} or less"
        return f"the sequence length is {plan.sequence_length} tokens: {cut}"
    shorter = max(least, plan.sequence_length // 2)
    while shorter > least and not _cuts(job, shorter):
        shorter = max(least, shorter // 2)
    return shorter if _cuts(job, shorter) else f"no sample is longer than {shorter} tokens"


def _cuts(job: Job, limit: int) -> bool:
    """Return whether the limit changes memory: not if every sample is shorter than it."""
    known = job.lengths
    return known is None or known.filled or (known.at_most or known.longest) > limit


def tokens_lost(job: Job, plan: Plan) -> str:
    """Return what cutting the sequence loses, as far as that is known; else an empty string."""
    if plan.overlong is Overlong.CHUNKED:
        return "loses no token: what is cut off is trained on as further samples"
    lost = "longer samples are left out" if plan.overlong is Overlong.DROPPED else ""
    if job.lengths is None or plan.sequence_length is None:
        return lost
    share = job.lengths.lost(plan.sequence_length, whole=plan.overlong is Overlong.DROPPED)
    counted = f"loses {share:.1%} of the tokens (counted by {job.lengths.counted_by})"
    return f"{lost}, which {counted}" if lost else counted


def divisor_at_most(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit` (at least 1)."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)
