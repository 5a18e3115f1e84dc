"""How each term of an estimate is computed, as a product in bytes, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.estimate.analytic import (
    EstimateInput,
    adapter_bytes,
    gradients,
    merged_embeddings,
    packed_head,
    raised_bytes,
    reference_weights,
)
from oomguard.estimate.architecture import Linear
from oomguard.estimate.correct import UNCORRECTED, Ratios
from oomguard.estimate.counts import targeted
from oomguard.estimate.formats import PACKED_BYTES
from oomguard.estimate.memory import MemoryEstimate, Term, allocated
from oomguard.estimate.optimizer_memory import (
    embedding_states,
    moments,
    raised_states,
    state_bytes,
    step_temporaries,
)
from oomguard.estimate.sharding import rank_fractions
from oomguard.job.memory_settings import ALL_LINEAR
from oomguard.job.plan import LossKernel, Quantization, Tuning
from oomguard.units import KIB, show_bytes

#: A product is shown as the term's if it is this close to it: half a unit of its last digit.
_ROUNDING = 0.002
_NOTES = {
    Term.INFERENCE_ENGINE: "the share of the GPU that vLLM claims",
    Term.QUANTIZATION_TEMPORARIES: "the largest matrix, dequantized",
    Term.ZERO_BUCKETS: "DeepSpeed or FSDP: flat buffers, gathered parameters, unreduced gradients",
    Term.COMMUNICATION_BUFFERS: "NCCL, and DDP's copy of the gradients",
    Term.WORKSPACES: "cuBLAS, forward and backward",
    Term.OTHER: "traced, of no other kind",
    Term.CUDA_CONTEXT: "CUDA context and loaded kernels, a constant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """`factors` (value, text) that multiply to bytes."""

    factors: tuple[tuple[float, str], ...]

    @property
    def size_bytes(self) -> float:
        """The product."""
        return math.prod(value for value, _ in self.factors)

    def __str__(self) -> str:
        return " x ".join(text for _, text in self.factors)


def explain_terms(
    problem: EstimateInput, estimate: MemoryEstimate, ratios: Ratios = UNCORRECTED
) -> dict[str, str]:
    """Return for each term of an estimate the product that its bytes are.

    Weights, adapter, gradients and optimizer states are counts times sizes, from the same values
    that the estimate was made of. If a trace differs from the product, both are shown. The other
    terms are shown per token, logit or layer.
    """
    terms = {Term(name): size for name, size in estimate.terms.items()}
    return {term.value: _explained(problem, terms, term, ratios, estimate) for term in terms}


def _explained(
    problem: EstimateInput,
    terms: Mapping[Term, int],
    term: Term,
    ratios: Ratios,
    estimate: MemoryEstimate,
) -> str:
    size, shown = terms[term], show_bytes(terms[term])
    factor = ratios.factors.get(term, 1.0)
    sums = [_corrected(products, factor) for products in _counted(problem, term)]
    for products in sums:
        if math.isclose(sum(one.size_bytes for one in products), size, rel_tol=_ROUNDING):
            return f"{_text(products)} = {shown}"
    if sums:
        total = show_bytes(int(sum(one.size_bytes for one in sums[0])))
        return f"{shown} ({estimate.method}); by count: {_text(sums[0])} = {total}"
    per_unit = _per_unit(problem, terms, term)
    if per_unit is not None:
        return f"{per_unit} = {shown}"
    return f"{_NOTES[term]} = {shown}"


def _corrected(products: tuple[Product, ...], factor: float) -> tuple[Product, ...]:
    if factor == 1.0:
        return products
    by = (factor, f"{factor:.4g} (measured before)")
    return tuple(replace(one, factors=(*one.factors, by)) for one in products)


def _text(products: tuple[Product, ...]) -> str:
    return " + ".join(map(str, products))


# --- Counts times sizes ---


def _counted(problem: EstimateInput, term: Term) -> list[tuple[Product, ...]]:
    """Return the sums that a term can be: which one depends on the moment of the peak."""
    numbers, share = problem.counts, rank_fractions(problem.plan, problem.ranks)
    state = _state(problem, share.master_bytes)
    match term:
        case Term.WEIGHTS:
            return [_weights(problem)]
        case Term.ADAPTER:
            return [_sum((numbers.adapter, _bytes(adapter_bytes(problem)), share.weights))]
        case Term.MEDIA_TOWERS:
            tower = _tower(problem)
            return [tower, (*tower, *_plain(problem.step.tower, "activations"))]
        case Term.OPTIMIZER:
            states = _sum((numbers.trained - numbers.embeddings, state, share.optimizer))
            states = (*states, *_wide(problem, term))
            states = (*states, *_raised(raised_states(problem) * share.optimizer))
            update = _plain(step_temporaries(problem), "temporaries of the update")
            return [states, (*states, *update)]
        case Term.GRADIENTS | Term.TRAINED_EMBEDDINGS:
            return _with_gradients(problem, term, state)
        case _:
            return []


def _with_gradients(
    problem: EstimateInput, term: Term, state: tuple[float, str]
) -> list[tuple[Product, ...]]:
    """Return the sums of a term with gradients, of which a rank holds a share at each moment."""
    share = rank_fractions(problem.plan, problem.ranks)
    first = max(share.before, share.gradients / problem.model.layers)
    shares = (share.after, share.gradients, share.before, first)
    size = problem.formats.trained_bytes
    held = _bytes(size)
    if term is Term.GRADIENTS:
        wider = raised_bytes(problem)
        count = (gradients(problem, 1.0)[term] - wider) // size
        return [
            (*_sum((count, held, part)), *_raised(wider * part)) for part in shares if count * part
        ]
    rows = problem.counts.embeddings
    fixed = _sum((rows, held, share.weights), (rows, state, share.optimizer))
    fixed = (*fixed, *_wide(problem, term))
    merged = _plain(merged_embeddings(problem), "merged matrices and a gradient")
    return [(*fixed, *_sum((rows, held, part)), *merged) for part in shares]


def _weights(problem: EstimateInput) -> tuple[Product, ...]:
    numbers, stored = problem.counts, problem.formats
    share = rank_fractions(problem.plan, problem.ranks).weights
    base = numbers.linear + numbers.rest + numbers.embeddings_base
    copy = _plain(int(reference_weights(problem) * share), "the reference model")
    packed = PACKED_BYTES.get(problem.plan.quantization or Quantization.NONE)
    if packed is not None:
        small = numbers.linear + packed_head(problem)
        rest = base - small
        packed_sum = _sum((small, _bytes(packed), share), (rest, _bytes(stored.base_bytes), share))
        return (*packed_sum, *copy)
    trained = min(numbers.base_trained, base)
    whole = _sum(
        (trained, _bytes(stored.trained_bytes), share),
        (base - trained, _bytes(stored.base_bytes), share),
    )
    return (*whole, *_raised(raised_bytes(problem) * share), *copy)


def _tower(problem: EstimateInput) -> tuple[Product, ...]:
    numbers, stored, plan = problem.counts, problem.formats, problem.plan
    share = rank_fractions(plan, problem.ranks).weights
    packed = PACKED_BYTES.get(plan.quantization or Quantization.NONE)
    if packed is not None and plan.tuning is Tuning.LORA:
        return _sum((numbers.tower, _bytes(packed), share))
    return _sum(
        (numbers.tower_trained, _bytes(stored.trained_bytes), share),
        (numbers.tower - numbers.tower_trained, _bytes(stored.base_bytes), share),
    )


def _state(problem: EstimateInput, master_bytes: int) -> tuple[float, str]:
    """Return the optimizer's bytes per trained number, as `2 x 4 B`."""
    each = state_bytes(problem)
    count, size = moments(problem)
    text = f"{count:g} x {size:g} B" if each == count * size else f"{each:.6g} B"
    if master_bytes:
        return each + master_bytes, f"{each + master_bytes:.6g} B ({text} and the fp32 weight)"
    return each, text


def _wide(problem: EstimateInput, term: Term) -> tuple[Product, ...]:
    return _plain(embedding_states(problem)[term], "states of embeddings, in fp32")


def _raised(size: float) -> tuple[Product, ...]:
    return _plain(int(size), "embeddings, head and norms in fp32")


def _sum(*addends: tuple[int, tuple[float, str], float]) -> tuple[Product, ...]:
    """Return (count, (bytes, text), share of this rank) as products, without those of nothing."""
    products = []
    for count, size, share in addends:
        factors: tuple[tuple[float, str], ...] = (size, (count, _count(count)))
        if share != 1.0:
            factors = (*factors, (share, f"{share:.6g} (per GPU)"))
        products.append(Product(factors=factors))
    filled = tuple(one for one in products if one.size_bytes)
    return filled or tuple(products[:1])


def _plain(size: int, what: str) -> tuple[Product, ...]:
    return (Product(factors=((size, f"{show_bytes(size)} ({what})"),)),) if size else ()


def _bytes(size: float) -> tuple[float, str]:
    return size, f"{size:.6g} B"


def _count(number: int) -> str:
    """Show a count in millions with at least four digits."""
    millions = number / 10**6
    return f"{millions:.0f} M" if millions >= 10**3 else f"{millions:.4g} M"


# --- Per token, logit or layer ---


def _per_unit(problem: EstimateInput, terms: Mapping[Term, int], term: Term) -> str | None:
    size, tokens, layers = terms[term], problem.step.tokens, problem.model.layers
    match term:
        case Term.ACTIVATIONS:
            how = " (checkpointed)" if problem.plan.checkpointing else ""
            return (
                f"{layers} layers x {tokens} tokens x {_each(size / layers / tokens)} per token"
                f"{how}"
            )
        case Term.LOGITS_AND_LOSS:
            vocabulary = problem.model.vocab + problem.recipe.new_tokens
            fused = problem.plan.loss_kernel is LossKernel.FUSED
            how = " (fused or chunked loss)" if fused or problem.recipe.loss_chunk else ""
            each = _each(size / tokens / vocabulary)
            return f"{tokens} tokens x {vocabulary} vocabulary x {each} per logit{how}"
        case Term.ATTENTION_WORKSPACE:
            return f"{tokens} tokens x {_each(size / tokens)} per token"
        case Term.GENERATION:
            rows = problem.plan.generation_batch or 1
            return f"{rows} completions x {_each(size / rows)} each, cache and sampling"
        case Term.ALLOCATOR_SLACK:
            inside = allocated(terms)
            return f"{size / inside:.4g} x {show_bytes(inside)} allocated"
        case _:
            return None


def _each(size: float) -> str:
    return f"{size / KIB:.4g} KiB" if size >= KIB else f"{size:.4g} B"


# --- What is trained ---


_UNKNOWN = "unknown (not full fine-tuning, frozen layers or LoRA)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPart:
    """What a plan trains: a description, and how many of the parameters; None if not known."""

    what: str
    parameters: int | None
    total: int

    def __str__(self) -> str:
        if self.parameters is None:
            return self.what
        share = self.parameters / max(1, self.total)
        counts = f"{_count(self.parameters)} of {_count(self.total)} parameters"
        return f"{self.what}: {counts} ({share:.2%})"


def trained_part(problem: EstimateInput) -> TrainedPart:
    """Return what a plan trains: `LoRA r=8 on q_proj, v_proj`, with the counts of the estimate."""
    numbers = problem.counts
    base = numbers.linear + numbers.rest + numbers.embeddings_base + numbers.tower
    if problem.plan.tuning in (None, Tuning.OTHER):
        return TrainedPart(what=_UNKNOWN, parameters=None, total=base)
    return TrainedPart(
        what=_method(problem),
        parameters=numbers.trained,
        total=base + numbers.adapter,
    )


def _method(problem: EstimateInput) -> str:
    plan, recipe = problem.plan, problem.recipe
    frozen = ", ".join(sorted(part.value.replace("_", " ") for part in plan.frozen or ()))
    if plan.tuning is Tuning.PARTIAL:
        end = "first" if recipe.trained_layers < 0 else "last"
        return f"freeze (the {end} {abs(recipe.trained_layers)} layers are trained)"
    if plan.tuning is not Tuning.LORA or recipe.lora is None:
        return f"full fine-tuning{f', {frozen} frozen' if frozen else ''}"
    quantized = plan.is_quantized
    bits = f" {plan.quantization.value}" if quantized and plan.quantization else ""
    method = f"{'QLoRA' if quantized else 'LoRA'}{bits} r={plan.lora_rank or recipe.lora.rank}"
    embeddings = ", and embedding matrices in full" if problem.counts.embeddings else ""
    how = " with DoRA" if recipe.lora.dora else ""
    return f"{method}{how} on {_targets(problem)}{embeddings}"


def _targets(problem: EstimateInput) -> str:
    lora = problem.recipe.lora
    if lora is None or {ALL_LINEAR, "all"} & {*lora.targets}:
        return "all linear layers"
    return ", ".join(lora.targets or map(_named, targeted(problem.model, lora)))


def _named(one: Linear) -> str:
    """Return what a matrix is called; models call a fused one differently."""
    return "the fused query, key and value" if one.role == "qkv" else one.names[0]
