"""Builds trace requests from the plans of a job: JSON, one variant for each different step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from oomguard.estimate.analytic import untruncated
from oomguard.estimate.combine import is_sharded
from oomguard.estimate.formats import formats, raises
from oomguard.job.memory_settings import ALL_LINEAR, Attention, Family, Format, Lora, MemorySettings
from oomguard.job.plan import EmbeddingRows, Offload, Plan, Precision
from oomguard.predict.prediction_request import PredictionRequest, cuda_overhead

#: Whisper's encoder takes 30 s at a time.
AUDIO_SECONDS = 30
#: Tokens of a sample that are no image.
SPARE_TOKENS = 64
NONE_KNOWN: Mapping[str, str] = MappingProxyType({})
#: The precision that the tracer autocasts in; it is told the format of the weights beside it.
_AUTOCAST = {
    Precision.BF16_TRUE: Precision.BF16_MIXED,
    Precision.FP16_TRUE: Precision.FP16_MIXED,
}
#: Fields of a plan that the tracer does not know: they do not change the traced step.
_ELSEWHERE = (
    *("low_cpu_mem_usage", "loader_workers", "pin_memory", "preprocess_workers", "allocator"),
    *("eval_batch", "eval_accumulation", "prediction_loss_only", "auto_find_batch_size"),
    *("sharding", "embedding_rows", "loftq", "overlong", "video_pixels", "device_map"),
    "precompute_reference",  # sent as a part of the objective
    *("completion_length", "generation_batch", "engine_share", "engine_sleeps"),
    "token_bound",  # sent as a micro batch
    "lora_rank",  # sent as the adapter's own
)


def variant(
    question: PredictionRequest, plan: Plan, versions: Mapping[str, str] = NONE_KNOWN
) -> dict[str, object] | None:
    """Return the step of one plan, without an id; None if the tracer has no such step.

    Of a sharded plan only the temporaries of a step are needed: it is traced on one GPU, in the
    formats that sharding brings, with an optimizer that adds nothing.
    """
    recipe = question.recipe
    untraced = recipe.states is not None
    untraced = untraced or (recipe.objective is not None and recipe.objective.traced is None)
    if plan.embedding_rows is EmbeddingRows.NEW or untraced:
        return None
    stored = formats(plan, recipe)
    offload = (plan.offload or frozenset()) & {Offload.ACTIVATIONS}
    precision = plan.precision
    if stored.autocast and precision is not None:
        precision = _AUTOCAST.get(precision, precision)
    step = replace(question.batched(plan), offload=offload, precision=precision)
    if is_sharded(plan):
        precision = precision if stored.autocast else Precision.BF16_TRUE
        step = replace(
            step, optimizer="sgd", precision=precision, accumulation=max(2, plan.accumulation)
        )
    quantized = plan.is_quantized
    if quantized and recipe.code.quantized_pages_optimizer:
        step = replace(step, optimizer="paged_adamw")
    if step.sequence_length is None:
        step = replace(step, sequence_length=untruncated(question.model.architecture))
    fields = msgspec.to_builtins(step, order="deterministic")
    half = "fp16" if recipe.base is Format.FP16 else "bf16"
    return {
        "plan": {name: value for name, value in fields.items() if name not in _ELSEWHERE},
        "recipe": {
            **_recipe(recipe, plan),
            **_media(question, step),
            **_lengths(question, step),
            **_of_versions(recipe, versions),
            **_raised(plan, recipe),
            "workspace_bytes": cuda_overhead(question.job).workspace_bytes,
            "weights_dtype": half if stored.base_bytes == Format.BF16.size_bytes else "fp32",
            "trainable_dtype": half if stored.trained_bytes == Format.BF16.size_bytes else "fp32",
        },
    }


def model(question: PredictionRequest) -> dict[str, object]:
    """Return the model as the dry run builds it."""
    component = question.recipe.component
    if component is not None:
        return {"family": question.recipe.family.value, "config": dict(component)}
    return {"family": question.model.family.value, "config": dict(question.model.config)}


def traced_family(recipe: MemorySettings, own: Family) -> Family:
    """Return whose model code is traced: the builder's of a component, else the config's."""
    return recipe.family if recipe.component is not None else own


def traced_with(recipe: MemorySettings, own: Family) -> tuple[str, ...]:
    """Return the packages that a trace needs: the model's, and that of the method's own loss."""
    since = recipe.objective.since if recipe.objective else None
    return (*traced_family(recipe, own).packages, *(since[:1] if since else ()))


def _raised(plan: Plan, recipe: MemorySettings) -> dict[str, object]:
    return {"raised": list(recipe.raised)} if raises(plan, recipe) else {}


def also_asked(recipe: MemorySettings) -> tuple[str, ...]:
    """Return the packages whose versions decide what runs, and that no trace needs."""
    kernels = recipe.lora.fused if recipe.lora else None
    return kernels.since[:1] if kernels else ()


def _recipe(recipe: MemorySettings, plan: Plan) -> dict[str, object]:
    attention = Attention.SDPA if recipe.attention is Attention.FLASH else recipe.attention
    return {
        "loop": recipe.code.loop.value,
        "use_reentrant": recipe.code.reentrant_checkpointing,
        "checkpoints_trained_layers": recipe.code.checkpoints_trained_layers,
        "kbit_float32": recipe.code.kbit_float32,
        "fused": recipe.fused,
        "step_in_backward": recipe.step_in_backward,
        "compiled": recipe.compiled,
        "lora": _lora(recipe.lora, plan) if recipe.lora is not None else None,
        **_objective(recipe, plan),
        "new_tokens": recipe.new_tokens,
        "train_embeddings": recipe.train_embeddings,
        "foreach": recipe.foreach,
        "max_grad_norm": recipe.max_grad_norm,
        "attention": attention.value,
    }


def _objective(recipe: MemorySettings, plan: Plan) -> dict[str, object]:
    """Return what the method computes; nothing where that is the model's cross entropy."""
    objective = recipe.objective
    if objective is None:
        return {}
    reference = "model" if objective.holds_copy(plan) else "adapter-off"
    stored = objective.reference_quantization
    return {
        "objective": {
            "rows": objective.rows,
            "head": objective.head.value,
            "labels": objective.labels,
            "reference": reference if objective.compares(plan) else "none",
            "reference_quantization": stored.value if stored else None,
            "loss": objective.traced,
        }
    }


def _media(question: PredictionRequest, step: Plan) -> dict[str, object]:
    """Return the images of the data's largest sample, else the largest that the settings allow.

    Either way they leave room for the text: a sample has no more image tokens than tokens.
    """
    tower = question.model.architecture.tower
    tokens = step.sequence_length or untruncated(question.model.architecture)
    if tower is None or not (question.recipe.images or question.images):
        return {}
    if tower.kind == "audio":
        return {"media": {"audio_seconds": AUDIO_SECONDS}}
    limit, unit = step.image_pixels or 768 * 768, tower.patch * tower.merge
    side = max(unit, math.isqrt(limit))
    sizes = question.images or ((side, side),) * question.recipe.images
    shown = [min(limit, high * wide) for high, wide in sizes]
    room = max(unit**2, (tokens - SPARE_TOKENS) * unit**2)
    scale = math.sqrt(min(1.0, room / sum(shown)))
    images = [
        [max(unit, int(edge * scale * math.sqrt(pixels / (high * wide)))) for edge in (high, wide)]
        for (high, wide), pixels in zip(sizes, shown, strict=True)
    ]
    return {"media": {"images": images}}


def _of_versions(recipe: MemorySettings, versions: Mapping[str, str]) -> dict[str, object]:
    """Return what depends on the versions that will run; nothing if they are unknown."""
    found: dict[str, object] = {
        field: True
        for field, (package, version) in recipe.code.since.items()
        if is_before(versions.get(package), version) is False
    }
    if is_before(versions.get("bitsandbytes"), (0, 43, 2)):
        found["bitsandbytes_keeps_input"] = True
    return found


def is_before(version: str | None, limit: tuple[int, ...]) -> bool | None:
    """Return whether a version is older than another; None if it is not known."""
    if version is None:
        return None
    parts = [int(part) for part in re.findall(r"\d+", version)[: len(limit)]]
    return tuple(parts) < limit


def _lengths(question: PredictionRequest, step: Plan) -> dict[str, object]:
    """Return the longest batch and a typical one, where the data's lengths are known.

    The longest meets the optimizer's state in the second step: it is traced last.
    """
    lengths, longest = question.job.lengths, step.sequence_length
    if question.batched(step) != step or lengths is None or longest is None:
        return {}
    typical = min(longest, lengths.sorted_tokens[len(lengths.sorted_tokens) // 2])
    if typical == longest or question.recipe.padded or lengths.filled:
        return {}
    if step.completion_length is not None:  # all rows are as long: a completion may always be
        return {}
    if question.recipe.images or question.images:  # which a shorter text may have no room for
        return {}
    batches = [[longest] * step.micro_batch, [typical] * step.micro_batch]
    return {"lengths": batches if step.accumulation > 1 else batches[::-1]}


def _lora(lora: Lora, plan: Plan) -> dict[str, object]:
    every = ALL_LINEAR in lora.targets
    return {
        "rank": plan.lora_rank or lora.rank,
        "alpha": lora.alpha,
        "targets": ALL_LINEAR if every else list(lora.targets) or None,
        "dropout": lora.dropout,
        "modules_to_save": list(lora.saved),
        "dora": lora.dora,
    }
