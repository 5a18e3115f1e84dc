"""`MemoryEstimate`: a predicted peak, the terms that add up to it, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Term(str, Enum):
    """What memory is held for at the peak, in the order in which it is shown."""

    WEIGHTS = "weights"  # the base model, as stored
    ADAPTER = "adapter"  # the weights that LoRA adds
    TRAINED_EMBEDDINGS = "trained_embeddings"  # copies, gradients and optimizer state of them
    MEDIA_TOWERS = "media_towers"  # vision or audio tower, projector
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS_AND_LOSS = "logits_and_loss"
    ATTENTION_WORKSPACE = "attention_workspace"
    GENERATION = "generation"  # the cache of keys and values, the pass over the prompts, sampling
    INFERENCE_ENGINE = "inference_engine"  # the share of the GPU that vLLM claims
    QUANTIZATION_TEMPORARIES = "quantization_temporaries"
    ZERO_BUCKETS = "zero_buckets"  # also what sharding gathers, and has not shared out yet
    COMMUNICATION_BUFFERS = "communication_buffers"
    WORKSPACES = "workspaces"  # cuBLAS
    OTHER = "other"  # traced, and none of the above
    ALLOCATOR_SLACK = "allocator_slack"  # reserved and not allocated
    CUDA_CONTEXT = "cuda_context"


#: Terms that PyTorch's allocator does not see.
OUTSIDE = frozenset({Term.CUDA_CONTEXT})
#: What the process group takes from the driver stands in COMMUNICATION_BUFFERS all the same.
NOT_ALLOCATED = OUTSIDE | {Term.ALLOCATOR_SLACK}

Terms = Mapping[Term, int]


class Method(str, Enum):
    """How an estimate was made."""

    TRACE = "trace"  # training steps on fake tensors, replayed through the allocator's policy
    EXTRAPOLATED = "trace-extrapolated"  # the same over few layers, extended to all
    ANALYTIC = "analytic"  # a formula over the model's shape
    SCALED = "analytic-scaled"  # the formula, corrected by a trace of another plan of the job


class Fits(str, Enum):
    """The verdict on whether a plan fits into a capacity."""

    YES = "yes"  # even the high estimate does
    NO = "no"  # not even the low estimate does
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """The peak of one GPU, and of the host while the weights are loaded.

    `allocated_bytes` is what torch.cuda.max_memory_allocated would show, `reserved_bytes`
    max_memory_reserved, `expected_bytes` nvidia-smi; `low_bytes` and `high_bytes` bound the
    last. `terms` add up to `expected_bytes`; `host_bytes` is for all ranks of a node.
    """

    allocated_bytes: int
    reserved_bytes: int
    low_bytes: int
    expected_bytes: int
    high_bytes: int
    terms: Mapping[str, int]
    method: str
    host_bytes: int = 0

    def fits(self, capacity_bytes: int) -> Fits:
        """Compare with what a GPU has."""
        if self.high_bytes <= capacity_bytes:
            return Fits.YES
        return Fits.NO if self.low_bytes > capacity_bytes else Fits.UNSURE


#: Terms that are counted number by number; the others depend on what the kernels do.
COUNTED = frozenset(
    {Term.WEIGHTS, Term.ADAPTER, Term.TRAINED_EMBEDDINGS, Term.GRADIENTS, Term.OPTIMIZER}
    | {Term.INFERENCE_ENGINE}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far the truth may lie from an estimate: factors on the terms that are not counted.

    `counted` bounds those that are, `context_bytes` the CUDA context, both ways.
    """

    low: float
    high: float
    counted: float = 0.01
    context_bytes: int = 0


def allocated(terms: Terms) -> int:
    """Sum what PyTorch's allocator hands out."""
    return sum(size for term, size in terms.items() if term not in NOT_ALLOCATED)


def estimate(
    terms: Terms, *, method: str, spread: Spread, host: Mapping[str, int] | None = None
) -> MemoryEstimate:
    """Make the noun from terms; those of no bytes are left out."""
    inside = allocated(terms)
    outside = sum(terms.get(term, 0) for term in OUTSIDE)
    slack = terms.get(Term.ALLOCATOR_SLACK, 0)
    reserved = inside + slack
    counted = sum(terms.get(term, 0) for term in COUNTED)
    low = counted * (1 - spread.counted) + (inside - counted) * spread.low
    high = counted * (1 + spread.counted) + (reserved - counted) * spread.high
    shown = {term.value: terms[term] for term in Term if terms.get(term, 0) > 0}
    return MemoryEstimate(
        allocated_bytes=inside,
        reserved_bytes=reserved,
        low_bytes=int(low) + max(0, outside - spread.context_bytes),
        expected_bytes=reserved + outside,
        high_bytes=int(high) + outside + spread.context_bytes,
        terms=shown,
        method=method,
        host_bytes=sum((host or {}).values()),
    )
