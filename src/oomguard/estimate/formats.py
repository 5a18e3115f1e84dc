"""In which formats a framework keeps weights, what it trains, and what it computes with."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.job.memory_settings import Format, MemorySettings
from oomguard.job.plan import ZERO, Plan, Precision, Quantization, Sharding, Tuning

_STORED = {
    Precision.FP32: Format.FP32,
    Precision.BF16_MIXED: Format.FP32,
    Precision.FP16_MIXED: Format.FP32,
    Precision.BF16_TRUE: Format.BF16,
    Precision.FP16_TRUE: Format.FP16,
}
_COMPUTED = {**_STORED, Precision.BF16_MIXED: Format.BF16, Precision.FP16_MIXED: Format.FP16}
_MIXED = frozenset({Precision.BF16_MIXED, Precision.FP16_MIXED})
_PURE = frozenset({Precision.BF16_TRUE, Precision.FP16_TRUE})

#: Bytes per number of a quantized matrix. bitsandbytes: blocks of 64 with one fp32 constant each;
#: with double quantization one byte each, and an fp32 per 256 of them. int8: one fp32 per row.
#: GPTQ and AWQ: groups of 128 with an fp16 scale and packed zeros.
PACKED_BYTES = {
    Quantization.NF4: 0.5 + 4 / 64,
    Quantization.FP4: 0.5 + 4 / 64,
    Quantization.NF4_DOUBLE: 0.5 + 1 / 64 + 4 / (64 * 256),
    Quantization.FP4_DOUBLE: 0.5 + 1 / 64 + 4 / (64 * 256),
    Quantization.INT8: 1.0,
    Quantization.PREQUANTIZED: 0.5 + 2.5 / 128,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Bytes per number: `base` frozen weights, `trained` weights, `computed` activations.

    `autocast` says that weights are cast where they are used.
    """

    base_bytes: int
    trained_bytes: int
    computed_bytes: int
    autocast: bool

    @property
    def hidden_bytes(self) -> int:
        """Bytes per number of hidden states: autocast leaves their sums as wide as the weights."""
        return self.base_bytes if self.autocast else self.computed_bytes


_IN_HALF = Formats(base_bytes=2, trained_bytes=2, computed_bytes=2, autocast=False)


def stored(plan: Plan, recipe: MemorySettings) -> Formats:
    """Return how a rank keeps numbers under a plan; DeepSpeed keeps its own fp32 copy elsewhere."""
    precision = plan.precision or Precision.FP32
    on_the_fly = plan.is_quantized and plan.quantization is not Quantization.PREQUANTIZED
    computed = _COMPUTED[precision]
    # Beside what is quantized: in the format of the computation, or raised.
    base = recipe.base or (computed if on_the_fly else _STORED[precision])
    if on_the_fly and recipe.code.kbit_float32:
        base = Format.FP32
    if computed is Format.FP32 and recipe.base is not None:
        computed = recipe.base  # no autocast: computation follows the weights
    if plan.sharding in ZERO and precision in _MIXED:
        # DeepSpeed converts the whole model, and keeps fp32 copies of what is trained.
        return _IN_HALF
    # PEFT raises an adapter whatever the weights are in (peft 0.21, tuners/tuners_utils.py,
    # cast_adapter_dtype); DeepSpeed takes it down with the model.
    is_adapter = plan.tuning is Tuning.LORA and plan.sharding not in ZERO
    raised = recipe.trained_fp32 and (is_adapter or precision not in _PURE)
    trained = Format.FP32 if raised else base
    if on_the_fly and recipe.code.quantized_adapter_bf16 and plan.tuning is Tuning.LORA:
        trained = Format.BF16
    if plan.tuning is not Tuning.LORA and plan.sharding is Sharding.FSDP:
        # accelerate raises what FSDP shards to fp32 where precision is mixed.
        trained = Format.FP32 if _casts_gathered(plan, recipe) else base
    return Formats(
        base_bytes=base.size_bytes,
        trained_bytes=trained.size_bytes,
        computed_bytes=computed.size_bytes,
        autocast=precision in _MIXED or _autocasts_halves(plan, recipe),
    )


def formats(plan: Plan, recipe: MemorySettings) -> Formats:
    """Return the formats a step computes in: FSDP shards fp32 and gathers 16 bits."""
    return _IN_HALF if _casts_gathered(plan, recipe) else stored(plan, recipe)


def raises(plan: Plan, recipe: MemorySettings) -> bool:
    """Return whether embeddings, head and norms are trained in fp32 beside matrices in 16 bits."""
    whole = plan.tuning is Tuning.FULL and plan.sharding in (None, Sharding.NONE)
    return bool(recipe.raised) and whole and plan.precision in _PURE


def _autocasts_halves(plan: Plan, recipe: MemorySettings) -> bool:
    """Return whether autocast runs over weights in 16 bits; under DeepSpeed nothing is autocast."""
    return recipe.autocasts and plan.precision in _PURE and plan.sharding not in ZERO


def _casts_gathered(plan: Plan, recipe: MemorySettings) -> bool:
    """Return whether FSDP's mixed precision casts parameters (otherwise autocast does)."""
    is_fsdp = plan.sharding is Sharding.FSDP and recipe.code.fsdp_casts_parameters
    raised = recipe.raises_shards and plan.tuning is not Tuning.LORA
    return is_fsdp and (plan.precision in _MIXED or raised)
