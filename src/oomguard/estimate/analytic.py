"""The analytic tier: the peak as the largest of a few moments of a step, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from oomguard.estimate import constants, sharding
from oomguard.estimate.activations import TrainingStep
from oomguard.estimate.architecture import Architecture
from oomguard.estimate.constants import CUDA, CudaOverhead
from oomguard.estimate.counts import Counts, adapter, counts
from oomguard.estimate.formats import PACKED_BYTES, Formats, formats, stored
from oomguard.estimate.memory import Spread, Term
from oomguard.estimate.optimizer_memory import (
    embedding_states,
    raised_states,
    state_bytes,
    step_temporaries,
)
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import (
    FOUR_BIT,
    Allocator,
    EmbeddingRows,
    Offload,
    Plan,
    Quantization,
    Sharding,
    Tuning,
)

#: Where the truth was found around this formula, on the rows of docs/prediction.md.
SPREAD = Spread(low=0.75, high=1.4, context_bytes=constants.CUDA_CONTEXT_SPREAD_BYTES)
#: Sequence length where neither the settings nor the data say one.
LONGEST = 2048
_FP32 = 4
#: Layers whose activations are on the GPU while the others wait on the host.
_LAYERS_ON_THEIR_WAY = 2
#: Gradients of the output head alive at once where it is used chunk by chunk: autograd's sum
#: makes a new one of two.
_HEAD_COPIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateInput:
    """A plan of a job on a model, on `ranks` GPUs; `cuda` is what CUDA takes on each.

    `further` counts the numbers of other models that the job holds, `further_trained` those of
    models that it trains as well. `engine_bytes` are those that an inference engine on the same GPU
    claims.
    """

    model: Architecture
    plan: Plan
    recipe: MemorySettings
    ranks: int = 1
    ranks_of_node: int = 1
    further: int = 0
    further_trained: int = 0
    engine_bytes: int = 0
    cuda: CudaOverhead = CUDA

    @property
    def formats(self) -> Formats:
        """How numbers are stored."""
        return stored(self.plan, self.recipe)

    @property
    def counts(self) -> Counts:
        """How many there are."""
        return counts(self.model, self.plan, self.recipe)

    @property
    def _formats_of_step(self) -> Formats:
        """How a step computes: embeddings in fp32 make the sums of hidden states as wide."""
        found = formats(self.plan, self.recipe)
        return replace(found, base_bytes=_FP32) if self.counts.raised else found

    @property
    def step(self) -> TrainingStep:
        """One micro batch of the longest samples."""
        return TrainingStep(
            model=self.model,
            plan=self.plan,
            recipe=self.recipe,
            formats=self._formats_of_step,
            length=self.plan.sequence_length or untruncated(self.model),
        )


def untruncated(model: Architecture) -> int:
    """Return the assumed tokens of a sample where no limit is known.

    A model with learned positions takes no more than it has.
    """
    return min(LONGEST, model.positions or LONGEST)


def analytic(problem: EstimateInput) -> dict[Term, int]:
    """Return the terms of the peak: those of the moment at which they are the most."""
    terms = max(_moments(problem), key=lambda moment: sum(moment.values()))
    return {
        **terms,
        Term.ALLOCATOR_SLACK: _slack(
            problem, sum(terms.values()) - terms.get(Term.INFERENCE_ENGINE, 0)
        ),
        Term.CUDA_CONTEXT: problem.cuda.context_bytes,
    }


def _slack(problem: EstimateInput, allocated_bytes: int) -> int:
    expandable = problem.plan.allocator is Allocator.EXPANDABLE
    logits = problem.step.largest_logits * constants.SLACK_LOGITS[expandable]
    return int(allocated_bytes * constants.SLACK[expandable] + logits)


def static(problem: EstimateInput) -> dict[Term, int]:
    """Return what is allocated throughout the step: weights, optimizer state, buffers."""
    numbers, stored = problem.counts, problem.formats
    share = sharding.rank_fractions(problem.plan, problem.ranks)
    kept = share.weights
    state = state_bytes(problem) + share.master_bytes
    trained = numbers.trained - numbers.embeddings + problem.further_trained
    gradients = stored.trained_bytes * numbers.trained
    each = stored.trained_bytes * kept + state * share.optimizer
    wide = embedding_states(problem)
    return {
        Term.WEIGHTS: int(_all_weights(problem) * kept),
        Term.ADAPTER: int(adapter_bytes(problem) * numbers.adapter * kept),
        Term.TRAINED_EMBEDDINGS: int(each * numbers.embeddings) + wide[Term.TRAINED_EMBEDDINGS],
        Term.MEDIA_TOWERS: int(_tower_weights(problem) * kept),
        Term.OPTIMIZER: int((state * trained + raised_states(problem)) * share.optimizer)
        + wide[Term.OPTIMIZER],
        Term.ZERO_BUCKETS: sharding.buckets(
            problem.model, problem.plan, problem.recipe, stored.trained_bytes
        ),
        Term.COMMUNICATION_BUFFERS: sharding.communication(
            problem.plan, problem.ranks, gradients, problem.cuda.nccl_bytes
        ),
        Term.WORKSPACES: 2 * problem.cuda.workspace_bytes,
        Term.INFERENCE_ENGINE: 0 if problem.plan.engine_sleeps else problem.engine_bytes,
    }


def _all_weights(problem: EstimateInput) -> int:
    """Return the bytes of all models: the trained one, its reference and those beside them."""
    stored = problem.formats
    others = problem.further * stored.base_bytes + problem.further_trained * stored.trained_bytes
    return base_weights(problem) + reference_weights(problem) + others


def adapter_bytes(problem: EstimateInput) -> int:
    """Return the size of an adapter's numbers.

    Under ZeRO-3 DeepSpeed converts the base as it is loaded, and what PEFT adds stays in fp32.
    """
    return _FP32 if problem.plan.sharding is Sharding.ZERO3 else problem.formats.trained_bytes


def base_weights(problem: EstimateInput) -> int:
    """Return the bytes of the decoder as stored; what full tuning trains is stored as trained."""
    numbers, stored, plan = problem.counts, problem.formats, problem.plan
    rest = numbers.rest + numbers.embeddings_base
    packed = PACKED_BYTES.get(plan.quantization or Quantization.NONE)
    if packed is not None:
        head = packed_head(problem)
        return int((numbers.linear + head) * packed) + (rest - head) * stored.base_bytes
    trained = min(numbers.base_trained, numbers.linear + rest)
    frozen = numbers.linear + rest - trained
    found = trained * stored.trained_bytes + frozen * stored.base_bytes
    return found + raised_bytes(problem)


def raised_bytes(problem: EstimateInput) -> int:
    """Return by how much weights that are trained in fp32 are wider than all others."""
    return problem.counts.raised * (_FP32 - problem.formats.trained_bytes)


def reference_weights(problem: EstimateInput) -> int:
    """Return the bytes of the frozen copy of the model that a loss compares with."""
    objective = problem.recipe.objective
    if objective is None or not objective.holds_copy(problem.plan):
        return 0
    numbers, size = problem.counts, problem.formats.base_bytes
    stored = objective.reference_quantization or problem.plan.quantization or Quantization.NONE
    rest = numbers.rest + numbers.embeddings_base
    return int((numbers.linear + numbers.tower) * PACKED_BYTES.get(stored, size) + rest * size)


def packed_head(problem: EstimateInput) -> int:
    """Count the numbers of an output head that is quantized too."""
    quantized = problem.plan.is_quantized
    return problem.model.head if quantized and problem.recipe.code.quantizes_head else 0


def _tower_weights(problem: EstimateInput) -> int:
    numbers, stored = problem.counts, problem.formats
    if problem.plan.quantization in PACKED_BYTES and problem.plan.tuning is Tuning.LORA:
        packed = PACKED_BYTES[problem.plan.quantization or Quantization.NF4]
        return int(numbers.tower * packed)
    trained = numbers.tower_trained
    return trained * stored.trained_bytes + (numbers.tower - trained) * stored.base_bytes


def _moments(problem: EstimateInput) -> Iterator[dict[Term, int]]:
    step = problem.step
    share = sharding.rank_fractions(problem.plan, problem.ranks)
    before = gradients(problem, share.before)
    checkpointing = bool(problem.plan.checkpointing)
    model = problem.model
    saved = _kept(problem)
    casts = _autocast_copies(problem)
    merged = {Term.TRAINED_EMBEDDINGS: merged_embeddings(problem)}
    held = added(static(problem), merged)
    working = added(held, gathered(problem))
    head = {Term.QUANTIZATION_TEMPORARIES: packed_head(problem) * problem.formats.computed_bytes}
    copy = step.cast_head
    at_loss = {Term.LOGITS_AND_LOSS: step.loss_forward + copy, Term.ACTIVATIONS: saved + casts}
    yield added(working, before, at_loss, head)
    if step.dora_working:
        yield added(working, before, {Term.ACTIVATIONS: saved + casts + step.dora_working})
    kept = saved + (0 if checkpointing else casts)
    turn = {Term.LOGITS_AND_LOSS: step.loss_backward + copy, Term.ACTIVATIONS: kept}
    yield added(working, before, turn, head)
    again = step.layer + step.dora_working if checkpointing else 0
    one = {
        Term.ACTIVATIONS: kept + step.working + again,
        Term.LOGITS_AND_LOSS: step.loss_kept,
        Term.ATTENTION_WORKSPACE: step.attention_workspace,
        Term.QUANTIZATION_TEMPORARIES: dequantized(problem),
    }
    first = gradients(problem, max(share.before, share.gradients / model.layers))
    yield added(working, first, one)
    if step.objective_loss is not None:
        yield added(working, before, _reference(problem, saved + casts))
    for moment in (*end_of_step_terms(problem), *generation_terms(problem)):
        yield added(held, moment)
    if model.tower is not None:
        yield added(working, before, {Term.MEDIA_TOWERS: step.tower})


def _reference(problem: EstimateInput, kept: int) -> dict[Term, int]:
    """Return what stands at the reference's loss, beside the trained policy's activations."""
    step, objective = problem.step, problem.recipe.objective
    if objective is None or step.objective_loss is None or not objective.compares(problem.plan):
        return {}
    kept = 0 if objective.reference_first else kept
    moment = {
        Term.ACTIVATIONS: kept + step.working,
        Term.LOGITS_AND_LOSS: step.objective_loss.reference,
        Term.QUANTIZATION_TEMPORARIES: dequantized(problem),
    }
    return added(moment, gathered(problem) if objective.holds_copy(problem.plan) else {})


def end_of_step_terms(problem: EstimateInput) -> Iterator[dict[Term, int]]:
    """Yield what stands beside the static terms when all gradients are there.

    First at the end of the backward pass, then while the optimizer updates.
    """
    step, plan = problem.step, problem.plan
    share = sharding.rank_fractions(plan, problem.ranks)
    whole = sharding.gradients_before_reduction(
        problem.model,
        plan,
        problem.ranks,
        trained=problem.counts.trained,
        size=step.formats.trained_bytes,
        shard_size=problem.formats.trained_bytes,
    )
    last = {Term.ACTIVATIONS: step.working + step.layer, Term.ZERO_BUCKETS: whole}
    yield added(gradients(problem, share.gradients), last, gathered(problem, at_end=True))
    updating = {Term.OPTIMIZER: step_temporaries(problem)}
    yield added(gradients(problem, share.after), updating)


def generation_terms(problem: EstimateInput) -> Iterator[dict[Term, int]]:
    """Yield what stands beside the static terms while completions are generated."""
    found, settings = problem.step.generation, problem.recipe.generation
    if settings is None:
        return
    share = sharding.rank_fractions(problem.plan, problem.ranks)
    whole = base_weights(problem) * (1 - share.weights) if settings.gathers else 0
    casts = _autocast_copies(problem) if problem.step.generates_in_autocast else 0
    beside = {Term.ZERO_BUCKETS: int(whole), Term.ACTIVATIONS: casts}
    if settings.is_amid_gradients(problem.plan):
        beside = added(beside, gradients(problem, share.gradients))
    if settings.by_engine:
        awake = problem.engine_bytes if problem.plan.engine_sleeps else 0
        yield added(beside, {Term.INFERENCE_ENGINE: awake})
    if found is not None:
        for size in (found.prefill, found.decoding):
            yield added(beside, {Term.GENERATION: size})


def gathered(problem: EstimateInput, *, at_end: bool = False) -> dict[Term, int]:
    """Return the bytes of parameters that are gathered from other ranks for the work on them.

    `at_end` of the backward pass only what lies outside of the layers is.
    """
    model, plan, recipe = problem.model, problem.plan, problem.recipe
    size = problem.step.formats.base_bytes
    packed = PACKED_BYTES.get(plan.quantization or Quantization.NONE, size)
    lora = adapter(model, plan, recipe) // model.layers if plan.tuning is Tuning.LORA else 0
    layer = int(model.layer_linear * packed) + model.layer_small * size
    layer += lora * (adapter_bytes(problem) if plan.sharding is Sharding.ZERO3 else size)
    if at_end:
        outside = model.embedding + (model.head if plan.sharding is Sharding.FSDP else 0)
        is_sharded = plan.sharding in (Sharding.ZERO3, Sharding.FSDP)
        return {Term.ZERO_BUCKETS: outside * size if is_sharded else 0}
    return {Term.ZERO_BUCKETS: sharding.gathered(model, plan, layer_bytes=layer, size=size)}


def _kept(problem: EstimateInput) -> int:
    """Return the bytes that the forward pass leaves on the GPU for the backward pass."""
    saved = problem.step.kept
    if Offload.ACTIVATIONS in (problem.plan.offload or ()):
        return _LAYERS_ON_THEIR_WAY * saved // problem.model.layers
    return saved


def merged_embeddings(problem: EstimateInput) -> int:
    """Return the bytes of the matrices into which PEFT puts new rows, and of one's gradient.

    Source: peft 0.18, tuners/trainable_tokens/layer.py (index_copy into the whole matrix).
    """
    if problem.plan.embedding_rows is not EmbeddingRows.NEW or not problem.recipe.new_tokens:
        return 0
    matrices = 1 if problem.model.tied else 2
    size = problem.model.embedding * problem.formats.base_bytes
    return (matrices + 1) * size


def dequantized(problem: EstimateInput) -> int:
    """Return the bytes of the largest matrix while it is unpacked."""
    plan = problem.plan
    if not plan.is_quantized:
        return 0
    largest = max(linear.inputs * linear.outputs for linear in problem.model.linears)
    if problem.recipe.code.torchao_nf4:
        return int(largest * _unpacked_bytes(problem))
    constants_bytes = 4 * (largest // 64) if plan.quantization in FOUR_BIT else 0
    return largest * problem.formats.computed_bytes + constants_bytes


def _unpacked_bytes(problem: EstimateInput) -> float:
    """Return the bytes per number while torchao unpacks: int64 indices, levels and products too.

    Source: torchao 0.15, dtypes/nf4tensor.py (get_original_weight); compiled, it is one kernel.
    """
    size = problem.formats.computed_bytes
    return size if problem.recipe.compiled else 8 + 3 * size + size / 64


def gradients(problem: EstimateInput, share: float) -> dict[Term, int]:
    """Return the bytes of a share of all gradients."""
    numbers, stored = problem.counts, problem.formats
    each = stored.trained_bytes * share
    if problem.recipe.step_in_backward:
        most = _HEAD_COPIES * problem.model.embedding  # the largest matrix of any model
        return {Term.GRADIENTS: int(each * min(most, numbers.trained))}
    wider = raised_bytes(problem) * share
    return {
        Term.GRADIENTS: int(
            each * (numbers.trained - numbers.embeddings + problem.further_trained) + wider
        ),
        Term.TRAINED_EMBEDDINGS: int(each * numbers.embeddings),
    }


def _autocast_copies(problem: EstimateInput) -> int:
    """Return the bytes of the half-precision copies that autocast keeps of fp32 weights."""
    stored, numbers = problem.step.formats, problem.counts
    if not stored.autocast:
        return 0
    if numbers.raised:  # of the matrices beside them the head alone
        return problem.model.embedding * stored.computed_bytes
    wide_base = numbers.linear if stored.base_bytes > stored.computed_bytes else 0
    wide = numbers.base_trained if stored.trained_bytes > stored.computed_bytes else 0
    # Only leaves that are trained are cached; a frozen matrix is cast for its own use alone.
    cached = min(wide_base or numbers.linear, wide) if wide else 0
    return cached * stored.computed_bytes


def added(*parts: dict[Term, int]) -> dict[Term, int]:
    """Sum terms one by one."""
    total: dict[Term, int] = {}
    for part in parts:
        for term, size in part.items():
            total[term] = total.get(term, 0) + size
    return total
