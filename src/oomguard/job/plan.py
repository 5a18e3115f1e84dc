"""`Plan`: the memory choices of one attempt, in words that no framework owns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import cast

import msgspec


class Precision(str, Enum):
    """Number formats of weights and computation."""

    FP32 = "fp32"
    BF16_MIXED = "bf16-mixed"  # fp32 weights, bf16 computation
    FP16_MIXED = "fp16-mixed"
    BF16_TRUE = "bf16-true"  # weights, gradients and optimizer state in bf16
    FP16_TRUE = "fp16-true"


class Quantization(str, Enum):
    """How the base model's weights are stored while an adapter is trained."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    NF4_DOUBLE = "nf4-double"  # the quantization constants are quantized too
    FP4 = "fp4"
    FP4_DOUBLE = "fp4-double"
    PREQUANTIZED = "prequantized"  # the checkpoint itself is quantized: GPTQ, AWQ


#: bitsandbytes' 4-bit formats: by `bnb_4bit_quant_type`, and whether the constants are quantized.
FOUR_BIT_KINDS = {
    ("nf4", False): Quantization.NF4,
    ("nf4", True): Quantization.NF4_DOUBLE,
    ("fp4", False): Quantization.FP4,
    ("fp4", True): Quantization.FP4_DOUBLE,
}
FOUR_BIT = frozenset(FOUR_BIT_KINDS.values())


class Tuning(str, Enum):
    """What is trained."""

    FULL = "full"
    LORA = "lora"
    PARTIAL = "partial"  # some layers of the base model
    OTHER = "other"  # another adapter method of the framework


class Part(str, Enum):
    """A part of a multimodal model that can be frozen by itself."""

    VISION_TOWER = "vision_tower"
    PROJECTOR = "projector"
    LANGUAGE_MODEL = "language_model"


class Sharding(str, Enum):
    """What the data-parallel ranks share out between themselves."""

    NONE = "none"
    ZERO1 = "zero1"  # optimizer state
    ZERO2 = "zero2"  # and gradients
    ZERO3 = "zero3"  # and parameters
    FSDP = "fsdp"


#: DeepSpeed's ways to shard.
ZERO = frozenset({Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3})


class Offload(str, Enum):
    """What is kept in host memory."""

    OPTIMIZER = "optimizer"
    PARAMETERS = "parameters"
    ACTIVATIONS = "activations"


class LossKernel(str, Enum):
    """How the loss over the vocabulary is computed."""

    EAGER = "eager"  # all logits at once
    FUSED = "fused"  # chunked, logits never whole


class Overlong(str, Enum):
    """What becomes of a sample that is longer than the sequence length."""

    CUT = "cut"  # what stands behind the limit is lost
    DROPPED = "dropped"  # the whole sample is
    CHUNKED = "chunked"  # nothing is: the rest is trained on as further samples


class DeviceMap(str, Enum):
    """Where each rank loads its copy of the model."""

    OWN = "own"  # straight onto its own device
    SHARED = "shared"  # onto devices that other ranks load theirs onto as well
    HOST = "host"  # into host memory first


class EmbeddingRows(str, Enum):
    """Which rows of the embedding and the output head are trained beside an adapter."""

    ALL = "all"  # the whole matrices, as PEFT's modules_to_save does
    NEW = "new"  # those of the new tokens alone, as PEFT's trainable_token_indices does


class Loftq(str, Enum):
    """How LoftQ starts a LoRA adapter."""

    AT_ONCE = "at_once"  # on the whole unquantized model
    STAGED = "staged"  # the base in 4-bit first, then one tensor at a time


class Allocator(str, Enum):
    """How the CUDA caching allocator takes memory."""

    DEFAULT = "default"
    EXPANDABLE = "expandable_segments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The memory choices of one attempt.

    A field is None where the framework has no such choice, or where it is not known.
    `micro_batch` samples go through the model at once on each data-parallel rank;
    `accumulation` of them make one optimizer step. `sequence_length` is in tokens,
    `image_pixels` the most pixels of one image, `video_pixels` of one frame of a video.
    `completion_length` is the most tokens that the policy generates after each prompt, which then
    nothing cuts; `generation_batch` the completions that each rank generates at once.
    `engine_share` is the part of each GPU that an inference engine in the same processes (vLLM)
    claims for generating them, `engine_sleeps` says that it gives it back for the training steps.
    `precompute_reference` says that the log-probabilities of the frozen reference policy are all
    computed before training. `eval_accumulation` evaluation steps pass before predictions leave
    the device; 0: all of them. `token_bound` are the most tokens (samples x the longest of them)
    that go through the model at once: the monitor divides larger micro batches; None: it does not.
    """

    micro_batch: int
    accumulation: int
    sequence_length: int | None = None
    completion_length: int | None = None
    generation_batch: int | None = None
    engine_share: float | None = None
    engine_sleeps: bool | None = None
    overlong: Overlong | None = None
    image_pixels: int | None = None
    video_pixels: int | None = None
    checkpointing: bool | None = None
    precision: Precision | None = None
    quantization: Quantization | None = None
    tuning: Tuning | None = None
    lora_rank: int | None = None
    embedding_rows: EmbeddingRows | None = None
    loftq: Loftq | None = None
    frozen: frozenset[Part] | None = None
    sharding: Sharding | None = None
    offload: frozenset[Offload] | None = None
    optimizer: str | None = None
    loss_kernel: LossKernel | None = None
    precompute_reference: bool | None = None
    low_cpu_mem_usage: bool | None = None
    device_map: DeviceMap | None = None
    loader_workers: int | None = None
    pin_memory: bool | None = None
    preprocess_workers: int | None = None
    allocator: Allocator | None = None
    eval_batch: int | None = None
    eval_accumulation: int | None = None
    prediction_loss_only: bool | None = None
    auto_find_batch_size: bool | None = None
    token_bound: int | None = None

    @property
    def rank_batch(self) -> int:
        """Samples of one optimizer step on one rank: what the ladder never changes."""
        return self.micro_batch * self.accumulation

    @property
    def is_quantized(self) -> bool:
        """Return whether the base is in fewer than 16 bits; False while that is not known."""
        return self.quantization not in (None, Quantization.NONE)


#: A field of a plan as it stands in JSON; sets are sorted lists.
Value = bool | int | float | str | list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field of a plan that was changed."""

    field: str
    before: Value
    after: Value


def differences(before: Plan, after: Plan) -> tuple[Change, ...]:
    """List the fields in which two plans differ, in the order of `Plan`."""
    return tuple(
        Change(field=name, before=as_json(old), after=as_json(new))
        for name in (field.name for field in fields(Plan))
        if (old := getattr(before, name)) != (new := getattr(after, name))
    )


def as_json(value: object) -> Value:
    """Turn a field of a plan into what JSON can hold."""
    return cast("Value", msgspec.to_builtins(value, order="deterministic"))
