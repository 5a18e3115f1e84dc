"""What an optimizer takes on the GPU: its states, and what it makes while it updates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from oomguard.estimate import sharding
from oomguard.estimate.memory import Term
from oomguard.job.memory_settings import Loop
from oomguard.job.optimizer import ADAMW, States, states_of
from oomguard.job.plan import FOUR_BIT, ZERO, Sharding, Tuning

if TYPE_CHECKING:
    from oomguard.estimate.analytic import EstimateInput

_FP32 = 4


def state_bytes(problem: EstimateInput) -> float:
    """Return the optimizer's bytes per trained number on the GPU."""
    return _states(problem).bytes_each(_updated_bytes(problem))


def moments(problem: EstimateInput) -> tuple[float, float]:
    """Return how many values the optimizer keeps per trained number, and their size."""
    states = _states(problem)
    return states.count, _updated_bytes(problem) if states.size is None else states.size


def _states(problem: EstimateInput) -> States:
    """Return what the optimizer keeps; one that is not known counts as AdamW, and is reported."""
    if problem.recipe.code.quantized_pages_optimizer and problem.plan.quantization in FOUR_BIT:
        return States(count=0)  # in managed memory: the driver moves it when the GPU is full
    if problem.recipe.states is not None:
        return _averaged(problem.recipe.states, problem)
    return states_of(problem.plan.optimizer or problem.recipe.optimizer) or ADAMW


def _averaged(states: States, problem: EstimateInput) -> States:
    """Return states with as many values for each number as there are on average."""
    model, trained = problem.model, problem.counts.trained
    if states.elsewhere is None or problem.plan.tuning is not Tuning.FULL or not trained:
        return states
    matrices = model.layers * sum(one.count * states.values(one.inputs, one.outputs)
                                  for one in model.linears)  # fmt: skip
    rest = max(0, trained - model.layers * model.layer_linear)
    return replace(states, count=(matrices + states.elsewhere * rest) / trained)


def _updated_bytes(problem: EstimateInput) -> int:
    """Return the size of the numbers that the optimizer updates."""
    return _FP32 if problem.plan.sharding in ZERO else problem.formats.trained_bytes


def raised_states(problem: EstimateInput) -> float:
    """Return the bytes by which states of what is trained in fp32 are wider than all others."""
    each, size = _states(problem).bytes_each, _updated_bytes(problem)
    return problem.counts.raised * (each(_FP32) - each(size))


def embedding_states(problem: EstimateInput) -> dict[Term, int]:
    """Return the bytes by which states of trained embeddings are wider than all others."""
    none = {Term.OPTIMIZER: 0, Term.TRAINED_EMBEDDINGS: 0}
    sharded = problem.plan.sharding not in (None, Sharding.NONE)  # flattened: none is known by name
    if problem.recipe.code.loop is not Loop.TRAINER or sharded:
        return none
    each, numbers = _states(problem).more_for_embeddings(), problem.counts
    if problem.plan.tuning is Tuning.FULL and numbers.base_trained:
        return {**none, Term.OPTIMIZER: int(each * _one_embedding(problem))}
    rows = min(numbers.embeddings, _one_embedding(problem))
    return {**none, Term.TRAINED_EMBEDDINGS: int(each * rows)}


def _one_embedding(problem: EstimateInput) -> int:
    """Count the numbers of the matrix that turns tokens into vectors."""
    return (problem.model.vocab + problem.recipe.new_tokens) * problem.model.hidden


def _largest_trained(problem: EstimateInput) -> int:
    """Count the numbers of the largest tensor that is trained; those of an adapter are small."""
    numbers, model = problem.counts, problem.model
    largest = max((one.inputs * one.outputs for one in model.linears), default=0)
    if problem.plan.tuning is Tuning.FULL and numbers.base_trained:
        return max(largest, _one_embedding(problem))
    if problem.plan.tuning is Tuning.PARTIAL:
        return largest
    return min(numbers.embeddings, _one_embedding(problem))


def step_temporaries(problem: EstimateInput) -> int:
    """Return what the optimizer's step takes beside its state.

    DeepSpeed flattens the rank's gradients and casts them to fp32; the update uses only the cast
    ones.
    """
    recipe, numbers, plan = problem.recipe, problem.counts, problem.plan
    share = sharding.rank_fractions(plan, problem.ranks)
    foreach = _states(problem).together and recipe.foreach and not recipe.fused
    size = problem.formats.trained_bytes
    if plan.sharding in ZERO:
        flat = sharding.updated(plan, numbers.trained, problem.ranks) if share.optimizer else 0
        cast = _FP32 * flat if size < _FP32 else 0
        update = (2 if foreach else 1) * _FP32 * flat
        return max(size * flat + cast, update)
    if foreach:
        return int(size * numbers.trained * share.optimizer)
    states = _states(problem)
    if states.rank is not None:  # matrices are decomposed, embeddings are not
        largest = max((one.inputs * one.outputs for one in problem.model.linears), default=0)
        embedding = states.tensors * size * _largest_trained(problem)
        return int(max(_FP32 * states.copies * largest, embedding) * share.optimizer)
    return int(states.working_bytes(size) * _largest_trained(problem) * share.optimizer)
