"""The arithmetic behind the terms of one plan, in words: counts times bytes."""

from __future__ import annotations

from oomguard.estimate import constants
from oomguard.estimate.analytic import EstimateInput, dequantized, state_bytes
from oomguard.estimate.formats import PACKED_BYTES
from oomguard.estimate.memory import Term
from oomguard.estimate.sharding import rank_fractions
from oomguard.job.plan import LossKernel, Quantization
from oomguard.units import show_bytes


def arithmetic(problem: EstimateInput) -> dict[str, str]:
    """Return how the analytic tier comes to each term; a traced estimate counts the same things."""
    numbers, stored, step = problem.counts, problem.formats, problem.step
    share = rank_fractions(problem.plan, problem.ranks)
    part = f" x {share.weights:g} on each GPU" if share.weights != 1 else ""
    vocabulary = problem.model.vocab + problem.recipe.new_tokens
    state = state_bytes(problem) + share.master_bytes
    trained = numbers.trained - numbers.embeddings
    lines = {
        Term.WEIGHTS: _weights(problem) + part,
        Term.ADAPTER: f"{_count(numbers.adapter)} numbers x {stored.trained_bytes} B{part}",
        Term.TRAINED_EMBEDDINGS: (
            f"{_count(numbers.embeddings)} numbers ({vocabulary} tokens x {problem.model.hidden}) "
            f"x ({stored.trained_bytes} B copy + {stored.trained_bytes} B gradient + {state:g} B "
            "state)"
        ),
        Term.MEDIA_TOWERS: f"{_count(numbers.tower)} numbers, and {show_bytes(step.tower)} at work",
        Term.GRADIENTS: (
            f"{_count(trained)} numbers x {stored.trained_bytes} B x {share.gradients:g}"
        ),
        Term.OPTIMIZER: f"{_count(trained)} numbers x {state:g} B x {share.optimizer:g}",
        Term.ACTIVATIONS: _activations(problem),
        Term.LOGITS_AND_LOSS: _loss(problem),
        Term.ATTENTION_WORKSPACE: f"{step.tokens} tokens: dq in fp32, k and v for all heads",
        Term.QUANTIZATION_TEMPORARIES: (
            f"the largest matrix unpacked: {show_bytes(dequantized(problem))}"
        ),
        Term.ZERO_BUCKETS: "flat buffers, gathered parameters, gradients not shared out yet",
        Term.COMMUNICATION_BUFFERS: (
            f"NCCL {show_bytes(constants.NCCL_BYTES)}, and DDP's copy of the gradients"
        ),
        Term.WORKSPACES: "cuBLAS :4096:2:16:8",
        Term.ALLOCATOR_SLACK: "reserved by PyTorch's allocator and not allocated",
        Term.CUDA_CONTEXT: "the CUDA context and loaded kernels, a constant",
    }
    return {term.value: text for term, text in lines.items()}


def _weights(problem: EstimateInput) -> str:
    numbers, stored = problem.counts, problem.formats
    rest = numbers.rest + numbers.embeddings_base
    packed = PACKED_BYTES.get(problem.plan.quantization or Quantization.NONE)
    if packed is not None:
        return (
            f"{_count(numbers.linear)} packed x {packed:.4g} B + "
            f"{_count(rest)} x {stored.base_bytes} B"
        )
    size = stored.trained_bytes if numbers.base_trained else stored.base_bytes
    return f"{_count(numbers.linear + rest)} numbers x {size} B"


def _activations(problem: EstimateInput) -> str:
    step, layers = problem.step, problem.model.layers
    size = f"{problem.plan.micro_batch} x {step.length} tokens"
    if problem.plan.checkpointing:
        each = show_bytes(step.checkpoints // layers)
        return f"{size}: {layers} layers x {each} kept, and {show_bytes(step.layer)} of one layer"
    return f"{size}: {layers} layers x {show_bytes(step.layer)}"


def _loss(problem: EstimateInput) -> str:
    vocabulary = problem.model.vocab + problem.recipe.new_tokens
    logits = f"{problem.step.tokens} tokens x {vocabulary} logits"
    if problem.plan.loss_kernel is LossKernel.FUSED:
        return f"{logits}, never whole: the fused loss goes through them in chunks"
    if problem.recipe.loss_chunk:
        return f"{logits}, {problem.recipe.loss_chunk} tokens at a time"
    return f"{logits} x 4 B x 3 (log-probabilities and two gradients)"


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return str(number)
