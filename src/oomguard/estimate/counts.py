"""How many numbers a plan stores and trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from oomguard.estimate.architecture import Architecture, Linear
from oomguard.estimate.formats import raises
from oomguard.job.memory_settings import ALL_LINEAR, Lora, MemorySettings
from oomguard.job.plan import EmbeddingRows, Part, Plan, Tuning

_EMBEDDINGS = {"embed_tokens", "wte", "lm_head", "embed_in", "embed_out", "word_embeddings"}
_PEFT_CHOICE = {"query", "value", "qkv"}
_HEADS = {"lm_head", "embed_out"}
#: What makes a single target a regular expression of whole names instead of one name.
_PATTERN = re.compile(r"[\\(\[|*+^$?]")
#: Where transformers' models have their layers, and what they call the parts of one.
_LAYERS = (
    "model",
    "model.language_model",
    "language_model.model",
    "model.text_model",
    "transformer",
)
_ATTENTION, _MLP = ("self_attn", "attn", "attention", "self_attention"), ("mlp", "feed_forward")
_EXPERTS = ("mlp.experts.0", "block_sparse_moe.experts.0", "feed_forward.experts.0")
#: What towers call their matrices; those of Qwen's fuse q, k and v (transformers 5.6, models/).
_PLAIN_TOWER = frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "fc1", "fc2"})
_FUSED_TOWER = frozenset(
    {"qkv", "proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2"}
)
_FUSES_TOWER = re.compile(r"qwen(2|2_5|3)_vl|qwen3_5|glm4v")
_PLAIN_LAYER = "model.vision_tower.vision_model.encoder.layers.0.self_attn"
_FUSED_LAYER = "model.visual.blocks.0.attn"
_ATTENDING = {"query", "key", "value", "qkv", "output", "query_a", "query_b", "kv_a", "kv_b"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers, not bytes. `linear` matrices can be quantized, `rest` of the base cannot.

    `adapter` is what LoRA adds, `embeddings` what is trained in full beside it (and `copied`:
    PEFT keeps the original too), `base_trained` what full or partial tuning trains of the base.
    `raised` of these are in fp32 whatever the others are in.
    """

    linear: int
    rest: int
    embeddings_base: int
    tower: int
    adapter: int = 0
    embeddings: int = 0
    base_trained: int = 0
    tower_trained: int = 0
    raised: int = 0

    @property
    def trained(self) -> int:
        """Everything with a gradient."""
        return self.adapter + self.embeddings + self.base_trained + self.tower_trained


def counts(model: Architecture, plan: Plan, recipe: MemorySettings) -> Counts:
    """Count; new tokens make the embeddings larger."""
    grown = (model.vocab + recipe.new_tokens) * model.hidden
    embeddings = grown * (1 if model.tied else 2)
    linear = model.layers * model.layer_linear + model.uncounted
    rest = model.decoder - linear - model.embedding - model.head
    tower = model.tower.parameters + model.tower.projector if model.tower else 0
    frozen_tower = _frozen_tower(model, plan)
    if plan.tuning is Tuning.FULL:
        text = 0 if Part.LANGUAGE_MODEL in (plan.frozen or ()) else linear + rest + embeddings
        return Counts(
            linear=linear,
            rest=rest,
            embeddings_base=embeddings,
            tower=tower,
            base_trained=text,
            tower_trained=tower - frozen_tower,
            raised=rest + embeddings if text and raises(plan, recipe) else 0,
        )
    if plan.tuning is Tuning.PARTIAL:
        part = trained_layers(model, recipe) * (model.layer_linear + model.layer_small)
        return Counts(
            linear=linear, rest=rest, embeddings_base=embeddings, tower=tower, base_trained=part
        )
    return Counts(
        linear=linear,
        rest=rest,
        embeddings_base=embeddings,
        tower=tower,
        adapter=adapter(model, plan, recipe),
        embeddings=_trained_embeddings(model, plan, recipe, grown),
    )


def trained_layers(model: Architecture, recipe: MemorySettings) -> int:
    """Count the layers that partial tuning trains."""
    return min(abs(recipe.trained_layers), model.layers)


def targeted(
    model: Architecture, lora: Lora | None, layer: int | None = None
) -> tuple[Linear, ...]:
    """List the matrices of one layer that LoRA adapts; without its number, those of any layer."""
    if lora is None:
        return ()
    linears = [one for one in model.linears if lora.reaches_experts or one.count == 1]
    if not lora.targets:  # peft, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        return tuple(linear for linear in linears if linear.role in _PEFT_CHOICE)
    if ALL_LINEAR in lora.targets or "all" in lora.targets:
        return tuple(linear for linear in linears if linear.role != "router")
    if is_pattern(lora.targets):
        layers = range(model.layers) if layer is None else range(layer, layer + 1)
        return tuple(one for one in linears if _matches(lora.targets[0], one, layers))
    names = {target.rsplit(".", 1)[-1] for target in lora.targets}
    return tuple(linear for linear in linears if names & {*linear.names})


def reaches_tower(model: Architecture, plan: Plan, lora: Lora | None) -> bool:
    """Return whether LoRA adapts matrices of a tower for images or sound too."""
    if model.tower is None or lora is None or plan.tuning is not Tuning.LORA:
        return False
    if Part.VISION_TOWER in (plan.frozen or ()):
        return False
    if ALL_LINEAR in lora.targets or "all" in lora.targets:
        return True
    is_fused = _FUSES_TOWER.match(model.model_type)
    names = _FUSED_TOWER if is_fused else _PLAIN_TOWER
    if is_pattern(lora.targets):
        layer = _FUSED_LAYER if is_fused else _PLAIN_LAYER
        return any(_fits(lora.targets[0], f"{layer}.{name}") for name in names)
    chosen = {target.rsplit(".", 1)[-1] for target in lora.targets or ("q_proj", "v_proj")}
    return bool(chosen & names)


def is_pattern(targets: tuple[str, ...]) -> bool:
    """Return whether targets are one regular expression, which PEFT matches with whole names.

    Source: peft 0.21, tuners/tuners_utils.py (check_target_module_exists).
    """
    return len(targets) == 1 and _PATTERN.search(targets[0]) is not None


@lru_cache(maxsize=4096)
def _matches(pattern: str, linear: Linear, layers: range) -> bool:
    return any(_fits(pattern, name) for layer in layers for name in _full_names(linear, layer))


def _fits(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _full_names(linear: Linear, layer: int) -> Iterator[str]:
    """Yield what a matrix may be called in a model of transformers."""
    parts = _ATTENTION if linear.role in _ATTENDING else _EXPERTS if linear.count > 1 else _MLP
    for model in _LAYERS:
        for part in parts:
            yield from (f"{model}.layers.{layer}.{part}.{name}" for name in linear.names)


def adapter(model: Architecture, plan: Plan, recipe: MemorySettings) -> int:
    """Count what LoRA adds to the decoder's layers, and to the head where it is a target."""
    if recipe.lora is None:
        return 0
    rank = plan.lora_rank or recipe.lora.rank
    magnitudes = 1 if recipe.lora.dora else 0
    head = rank * (model.hidden + model.vocab) if _HEADS & {*recipe.lora.targets} else 0
    return head + sum(
        (rank * (m.inputs + m.outputs) + magnitudes * m.outputs) * m.count * layers
        for m, layers in _adapted(model, recipe.lora)
    )


def _adapted(model: Architecture, lora: Lora) -> Iterator[tuple[Linear, int]]:
    """Yield each matrix that LoRA adapts, and in how many layers."""
    if not is_pattern(lora.targets):
        yield from ((matrix, model.layers) for matrix in targeted(model, lora))
        return
    for layer in range(model.layers):
        yield from ((matrix, 1) for matrix in targeted(model, lora, layer))


def _trained_embeddings(model: Architecture, plan: Plan, recipe: MemorySettings, grown: int) -> int:
    quantized = plan.is_quantized
    if quantized and recipe.code.quantized_trains_embedding:
        return model.embedding
    if plan.embedding_rows is EmbeddingRows.NEW:
        return recipe.new_tokens * model.hidden * (1 if model.tied else 2)
    saved = {name.rsplit(".", 1)[-1] for name in recipe.lora.saved} if recipe.lora else set()
    if recipe.train_embeddings or (recipe.new_tokens and not saved & _EMBEDDINGS):
        return grown * (1 if model.tied else 2)
    heads = 1 if saved & _HEADS else 0
    inputs = 1 if saved & (_EMBEDDINGS - _HEADS) else 0
    return grown * (min(1, heads + inputs) if model.tied else heads + inputs)


def _frozen_tower(model: Architecture, plan: Plan) -> int:
    if model.tower is None:
        return 0
    frozen = plan.frozen or frozenset()
    vision = model.tower.parameters if Part.VISION_TOWER in frozen else 0
    return vision + (model.tower.projector if Part.PROJECTOR in frozen else 0)
