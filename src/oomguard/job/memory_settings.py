"""`MemorySettings`: what of a job, beyond its `Plan`, decides how much memory it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Family(str, Enum):
    """Whose model code runs, and whose words name its layers."""

    HF = "hf"  # transformers
    LITGPT = "litgpt"
    TORCHTUNE = "torchtune"  # its own modules, in the words of transformers


class Attention(str, Enum):
    """How attention is computed."""

    EAGER = "eager"  # all scores at once
    SDPA = "sdpa"  # torch's scaled_dot_product_attention
    FLASH = "flash"  # the flash-attn package


class Format(str, Enum):
    """How one number is stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def size_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is Format.FP32 else 2


#: The LoRA target that stands for every linear layer but the output head.
ALL_LINEAR = "all-linear"


#: What models call their matrices over the vocabulary.
VOCABULARY = frozenset(
    {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA adapter; `targets` in the words of the model's code (none: PEFT's own choice).

    `saved` modules are trained in full beside it.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    saved: tuple[str, ...] = ()

    @property
    def trained_embeddings(self) -> tuple[str, ...]:
        """Return those of the saved modules that are matrices over the vocabulary."""
        return tuple(name for name in self.saved if name in VOCABULARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoftqStart:
    """The bits that LoftQ quantizes to when it initializes an adapter."""

    bits: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What the prediction needs to know of a job.

    `model` is the hub id or the folder as the user wrote it. `base` is the format that the
    framework loads weights in, None where it follows `Plan.precision`; `trained_fp32` says that
    trained parameters are raised to fp32. `new_tokens` are added to the vocabulary;
    `trained_layers` counts the layers that partial tuning trains. `loss_chunk` is the number of
    tokens whose logits are computed at once, None for all. `fused` is the optimizer that updates
    without temporaries, `foreach` the one that makes them for all parameters together. `padded`
    says that every sample is padded to the limit. `component` is the function that
    builds the model, with its arguments, where the settings say one; `step_in_backward` that each
    gradient is used and dropped as it comes; `compiled` that torch.compile makes the kernels.
    `images` are those of one sample. `data` are
    paths of training files as far as the settings name them; `reduce_bucket` counts numbers in
    DeepSpeed's bucket, None where it follows the model; `overlap_comm` says that it has two.
    """

    framework: str
    model: str | None = None
    family: Family = Family.HF
    base: Format | None = None
    trained_fp32: bool = True
    lora: Lora | None = None
    loftq: LoftqStart | None = None
    new_tokens: int = 0
    train_embeddings: bool = False
    trained_layers: int = 2
    optimizer: str = "adamw"
    foreach: bool = True
    fused: bool = False
    max_grad_norm: float | None = 1.0
    attention: Attention = Attention.SDPA
    loss_chunk: int | None = None
    packing: bool = False
    padded: bool = False
    images: int = 0
    component: Mapping[str, object] | None = None
    step_in_backward: bool = False
    compiled: bool = False
    data: tuple[str, ...] = ()
    reduce_bucket: int | None = None
    overlap_comm: bool = False
