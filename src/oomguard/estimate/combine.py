"""Bring a traced step and the arithmetic together: names, sharding, scaling, cross-check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.estimate import constants, sharding
from oomguard.estimate.analytic import (
    EstimateInput,
    added,
    analytic,
    end_of_step_terms,
    gathered,
    generation_terms,
    gradients,
    static,
)
from oomguard.estimate.formats import PACKED_BYTES
from oomguard.estimate.memory import NOT_ALLOCATED, MemoryEstimate, Spread, Term, allocated
from oomguard.job.plan import FOUR_BIT, Allocator, Plan, Sharding

#: Between trace and arithmetic more than this factor apart, one of them misses something.
DISAGREEMENT = 1.35
#: Around a trace: replays of jobs whose batches differ in length reserve up to a sixth more.
SPREAD = Spread(low=0.96, high=1.1, context_bytes=constants.CUDA_CONTEXT_SPREAD_BYTES)
#: Around arithmetic that was scaled to a trace of another plan of the same job.
SCALED_SPREAD = Spread(low=0.85, high=1.2, context_bytes=constants.CUDA_CONTEXT_SPREAD_BYTES)
_SCALE_AT_MOST = 3.0
#: A replay has to do within the capacity divided by this: what a trace may be too small by.
REPLAY_MARGIN = 1.04

#: The dry run's words -> terms.
_NAMES = {
    "weights": Term.WEIGHTS,
    "quantization": Term.QUANTIZATION_TEMPORARIES,
    "quantization_temporaries": Term.QUANTIZATION_TEMPORARIES,
    "trained_embeddings": Term.TRAINED_EMBEDDINGS,
    "vision_tower": Term.MEDIA_TOWERS,
    "audio_tower": Term.MEDIA_TOWERS,
    "gradients": Term.GRADIENTS,
    "optimizer": Term.OPTIMIZER,
    "activations": Term.ACTIVATIONS,
    "logits_and_loss": Term.LOGITS_AND_LOSS,
    "attention_workspace": Term.ATTENTION_WORKSPACE,
    "generation": Term.GENERATION,
    "workspace": Term.WORKSPACES,
}
#: What arithmetic only guesses, and a trace knows.
DYNAMIC = frozenset(
    {
        Term.ACTIVATIONS,
        Term.LOGITS_AND_LOSS,
        Term.ATTENTION_WORKSPACE,
        Term.GENERATION,
        Term.QUANTIZATION_TEMPORARIES,
        Term.ALLOCATOR_SLACK,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What the dry run answered for one plan: bytes, by its own words for the terms."""

    allocated_bytes: int
    reserved_bytes: int
    reserved_expandable_bytes: int
    terms: Mapping[str, int]
    method: str
    fits_replay: bool | None = None


def is_sharded(plan: Plan) -> bool:
    """Return whether ranks share out more than the batch."""
    return plan.sharding not in (None, Sharding.NONE)


def traced_terms(traced: Traced, problem: EstimateInput) -> dict[Term, int]:
    """Return the terms of a traced step, with what stands outside of it on every rank."""
    terms = _named(traced)
    terms[Term.ALLOCATOR_SLACK] = _slack(traced, problem.plan)
    if is_sharded(problem.plan):
        return _shared_out(terms, problem)
    fixed = static(problem)
    adapter = min(fixed[Term.ADAPTER], terms.get(Term.WEIGHTS, 0))
    quantized = _quantization_constants(problem, terms)
    moved = {
        Term.WEIGHTS: terms.get(Term.WEIGHTS, 0) - adapter + quantized,
        Term.ADAPTER: adapter,
        Term.QUANTIZATION_TEMPORARIES: terms.get(Term.QUANTIZATION_TEMPORARIES, 0) - quantized,
        Term.COMMUNICATION_BUFFERS: fixed[Term.COMMUNICATION_BUFFERS],
        Term.CUDA_CONTEXT: problem.cuda.context_bytes,
    }
    return {**terms, **moved}


def replay_capacity(capacity_bytes: int, context_bytes: int) -> int:
    """Return the bytes a replay must stay within for its plan to be certain to fit."""
    outside = context_bytes + constants.CUDA_CONTEXT_SPREAD_BYTES
    return max(1, int((capacity_bytes - outside) / REPLAY_MARGIN))


def clip_to_capacity(found: MemoryEstimate, capacity_bytes: int) -> MemoryEstimate:
    """Cap an estimate at a capacity within which its replay succeeds.

    Where memory runs short the allocator gives cached blocks back and tries again, so what it
    would reserve with more room says nothing.
    """
    over = max(0, found.expected_bytes - capacity_bytes)
    slack = found.terms.get(Term.ALLOCATOR_SLACK.value, 0)
    if found.high_bytes <= capacity_bytes or over > slack:
        return found
    terms = {**found.terms, Term.ALLOCATOR_SLACK.value: slack - over}
    return replace(
        found,
        reserved_bytes=found.reserved_bytes - over,
        expected_bytes=found.expected_bytes - over,
        high_bytes=capacity_bytes,
        terms={name: size for name, size in terms.items() if size > 0},
    )


def scaled(
    problem: EstimateInput, reference: EstimateInput, traced: Mapping[Term, int]
) -> dict[Term, int]:
    """Correct the arithmetic of one plan by the trace of another plan of the same job."""
    terms, guessed = analytic(problem), analytic(reference)
    for term in DYNAMIC:
        known, guess = traced.get(term, 0), guessed.get(term, 0)
        if known and guess:
            ratio = min(_SCALE_AT_MOST, max(1 / _SCALE_AT_MOST, known / guess))
            terms[term] = int(terms.get(term, 0) * ratio)
    return terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A trace and the arithmetic that are too far apart: traced over computed, and the worst term.

    `traced_bytes` and `computed_bytes` are those of `term`.
    """

    ratio: float
    term: Term
    traced_bytes: int
    computed_bytes: int


def disagreement(traced: Mapping[Term, int], problem: EstimateInput) -> Disagreement | None:
    """Compare a trace with the arithmetic; None where they are as close as they should be."""
    computed = analytic(problem)
    ratio = allocated(traced) / allocated(computed)
    if 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
        return None
    terms = [term for term in Term if term not in NOT_ALLOCATED]
    worst = max(terms, key=lambda term: abs(traced.get(term, 0) - computed.get(term, 0)))
    return Disagreement(
        ratio=ratio,
        term=worst,
        traced_bytes=traced.get(worst, 0),
        computed_bytes=computed.get(worst, 0),
    )


def covering(found: MemoryEstimate, other: MemoryEstimate) -> MemoryEstimate:
    """Return an estimate whose interval also covers another's."""
    return replace(
        found,
        low_bytes=min(found.low_bytes, other.low_bytes),
        high_bytes=max(found.high_bytes, other.high_bytes),
    )


def _named(traced: Traced) -> dict[Term, int]:
    terms: dict[Term, int] = {}
    for name, size in traced.terms.items():
        if name != Term.ALLOCATOR_SLACK.value:
            term = _NAMES.get(name, Term.OTHER)
            terms[term] = terms.get(term, 0) + size
    missing = traced.allocated_bytes - sum(terms.values())
    # The allocator rounds every block up; what that adds belongs to no term of its own.
    terms[Term.OTHER] = terms.get(Term.OTHER, 0) + max(0, missing)
    return terms


def _slack(traced: Traced, plan: Plan) -> int:
    expandable = plan.allocator is Allocator.EXPANDABLE
    reserved = traced.reserved_expandable_bytes if expandable else traced.reserved_bytes
    return max(0, reserved - traced.allocated_bytes)


def _quantization_constants(problem: EstimateInput, terms: Mapping[Term, int]) -> int:
    """Return the bytes of quantization constants, which stay: they are counted as weights."""
    quantization = problem.plan.quantization
    if quantization not in FOUR_BIT or quantization is None:
        return 0
    kept = int(problem.counts.linear * (PACKED_BYTES[quantization] - 0.5))
    return min(kept, terms.get(Term.QUANTIZATION_TEMPORARIES, 0))


def _shared_out(terms: dict[Term, int], problem: EstimateInput) -> dict[Term, int]:
    """Return the terms of a step from the trace, and the persistent ones from arithmetic.

    The peak may also come later, when all gradients are there.
    """
    dynamic = {term: terms.get(term, 0) for term in (*DYNAMIC, Term.OTHER)}
    share = sharding.rank_fractions(problem.plan, problem.ranks)
    alone = static(_alone(problem))[Term.MEDIA_TOWERS]
    tower = {Term.MEDIA_TOWERS: max(0, terms.get(Term.MEDIA_TOWERS, 0) - alone)}
    at_work = added(dynamic, tower, gathered(problem), gradients(problem, share.before))
    slack = {Term.ALLOCATOR_SLACK: dynamic[Term.ALLOCATOR_SLACK]}
    others = (*end_of_step_terms(problem), *generation_terms(problem))
    moments = [at_work, *(added(moment, slack) for moment in others)]
    most = max(moments, key=lambda moment: sum(moment.values()))
    return {**added(static(problem), most), Term.CUDA_CONTEXT: problem.cuda.context_bytes}


def _alone(problem: EstimateInput) -> EstimateInput:
    plan = replace(problem.plan, sharding=Sharding.NONE, offload=frozenset())
    return replace(problem, plan=plan, ranks=1, ranks_of_node=1)
