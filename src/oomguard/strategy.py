"""The names that a strategy file imports; everything else in oomguard may move."""

from dataclasses import (
    replace,
)

from oomguard.evidence.verdict import (
    Kind,
    Phase,
    Verdict,
)
from oomguard.job.plan import (
    ZERO,
    Allocator,
    DeviceMap,
    EmbeddingRows,
    Loftq,
    LossKernel,
    Offload,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import (
    Device,
    Job,
)
from oomguard.ladder.strategy_contract import (
    NEW_RECIPE,
    SAME_MATH,
    SAME_RECIPE,
    SHORTEST,
    TRAINING,
    Fidelity,
    Remedy,
    Strategy,
    divisor_at_most,
    quantized_base,
    ready_for_zero3,
    shorter_sequence,
    tokens_lost,
    trains_much,
)

__all__ = [
    "NEW_RECIPE",
    "SAME_MATH",
    "SAME_RECIPE",
    "SHORTEST",
    "TRAINING",
    "ZERO",
    "Allocator",
    "Device",
    "DeviceMap",
    "EmbeddingRows",
    "Fidelity",
    "Job",
    "Kind",
    "Loftq",
    "LossKernel",
    "Offload",
    "Overlong",
    "Part",
    "Phase",
    "Plan",
    "Precision",
    "Quantization",
    "Remedy",
    "Sharding",
    "Strategy",
    "Tuning",
    "Verdict",
    "divisor_at_most",
    "quantized_base",
    "ready_for_zero3",
    "replace",
    "shorter_sequence",
    "tokens_lost",
    "trains_much",
]
