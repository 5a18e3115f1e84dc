"""In which formats a framework keeps weights, what it trains, and what it computes with."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.plan import Plan, Precision, Quantization, Sharding, Tuning
from oomguard.recipe import Format, Recipe

_STORED = {
    Precision.FP32: Format.FP32,
    Precision.BF16_MIXED: Format.FP32,
    Precision.FP16_MIXED: Format.FP32,
    Precision.BF16_TRUE: Format.BF16,
    Precision.FP16_TRUE: Format.FP16,
}
_COMPUTED = {**_STORED, Precision.BF16_MIXED: Format.BF16, Precision.FP16_MIXED: Format.FP16}
_PURE = frozenset({Precision.BF16_TRUE, Precision.FP16_TRUE})
ZERO = frozenset({Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3})
FOUR_BIT = frozenset(
    {Quantization.NF4, Quantization.NF4_DOUBLE, Quantization.FP4, Quantization.FP4_DOUBLE}
)
DOUBLE = frozenset({Quantization.NF4_DOUBLE, Quantization.FP4_DOUBLE})

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


def formats(plan: Plan, recipe: Recipe) -> Formats:
    """Say how numbers are stored under a plan; DeepSpeed keeps its own fp32 copy elsewhere."""
    precision = plan.precision or Precision.FP32
    base = recipe.base or _STORED[precision]
    computed = _COMPUTED[precision]
    if computed is Format.FP32 and recipe.base is not None:
        computed = recipe.base  # no autocast: computation follows the weights
    if plan.sharding in ZERO and precision in (Precision.BF16_MIXED, Precision.FP16_MIXED):
        # DeepSpeed converts the whole model, and keeps fp32 copies of what is trained.
        return Formats(base_bytes=2, trained_bytes=2, computed_bytes=2, autocast=False)
    raised = recipe.trained_fp32 and precision not in _PURE
    trained = Format.FP32 if raised else base
    if plan.tuning is not Tuning.LORA and plan.sharding is Sharding.FSDP:
        trained = base
    mixed = precision in (Precision.BF16_MIXED, Precision.FP16_MIXED)
    return Formats(
        base_bytes=base.size_bytes,
        trained_bytes=trained.size_bytes,
        computed_bytes=computed.size_bytes,
        autocast=mixed,
    )
