"""`MemorySettings`: what of a job, beyond its `Plan`, decides how much memory it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from oomguard.job.optimizer import States
from oomguard.job.plan import Plan, Quantization, Tuning
from oomguard.job.unmodelled import TrainingMethod


class Family(str, Enum):
    """The library whose model code runs and which names its layers."""

    HF = "hf"  # transformers
    LITGPT = "litgpt"
    TORCHTUNE = "torchtune"  # its own modules, with transformers' names for their matrices

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that build such a model."""
        return ("torch", "transformers" if self is Family.HF else self.value)

    @property
    def extra(self) -> str:
        """The extra of oomguard that installs them, with what else decides a trace."""
        return "trace" if self is Family.HF else f"trace-{self.value}"


class Loop(str, Enum):
    """A training loop, as far as it decides what is alive when."""

    TRAINER = "trainer"  # transformers' Trainer: nothing of a forward pass outlives its backward
    SCRIPT = "script"  # a plain loop: inputs, outputs and loss live until the next iteration's
    KEEPS_LOGITS = "keeps-logits"  # the logits live until the next iteration's exist
    SUMS_LOSSES = "sums-losses"  # logits go before the backward pass, the loss's graph stays


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


class FusedPart(str, Enum):
    """Matrices of a layer that one kernel computes together with their adapters."""

    ATTENTION = "attention"  # query, key and value
    OUTPUT = "output"
    MLP = "mlp"  # gate, up and down


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraKernels:
    """A framework's own LoRA kernels for `parts` of a layer, from the version of a package on.

    They keep less than PEFT's layers, which run wherever the kernels do not.
    """

    parts: frozenset[FusedPart]
    since: tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA adapter; `targets` are names in the model's code (none: PEFT's own choice).

    `saved` modules are trained in full beside it. `reaches_experts` says that the experts of a
    layer are adapted if they are among the targets, `dora` that DoRA trains a magnitude of every
    row as well. `fused` are the kernels that compute it, None for PEFT's own layers.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    saved: tuple[str, ...] = ()
    reaches_experts: bool = True
    dora: bool = False
    fused: LoraKernels | None = None

    @property
    def trained_embeddings(self) -> tuple[str, ...]:
        """Return those of the saved modules that are matrices over the vocabulary."""
        return tuple(name for name in self.saved if name in VOCABULARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoftqStart:
    """The bits that LoftQ quantizes to when it initializes an adapter."""

    bits: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCode:
    """How a framework's own code uses memory; the defaults are transformers' and PEFT's.

    Each adapter states these facts once, with their source; the estimate and the tracer read no
    framework's name.

    Attributes:
        loop: the training loop.
        reentrant_checkpointing: gradient checkpointing runs torch's reentrant variant.
        checkpoints_trained_layers: only layers with a trained parameter are checkpointed.
        kbit_float32: PEFT's prepare_model_for_kbit_training raises what is not quantized to fp32.
        quantized_adapter_bf16: the adapter over a base that bitsandbytes quantizes is in bf16.
        fsdp_casts_parameters: FSDP's mixed precision casts parameters, instead of autocast.
        dropout_per_matrix: LoRA keeps a dropout mask and output for every adapted matrix, instead
            of one for all that share an input.
        keeps_qkv: attention keeps all of q, k and v (v is a view of the fused product).
        chunked_loss: a fused loss computes the logits in chunks and keeps them.
        torchao_nf4: 4-bit weights are torchao's, unpacked by plain operators.
        quantizes_head: the output head is quantized as well.
        quantized_trains_embedding: a quantized run trains a second embedding.
        quantized_pages_optimizer: a quantized run takes bitsandbytes' paged AdamW.
        maps_checkpoint: on one GPU the checkpoint is memory-mapped, whatever the settings.
        since: what the tracer assumes from a version of a package on: its field -> (package,
            version).
    """

    loop: Loop = Loop.TRAINER
    reentrant_checkpointing: bool = False
    checkpoints_trained_layers: bool = False
    kbit_float32: bool = False
    quantized_adapter_bf16: bool = False
    fsdp_casts_parameters: bool = True
    dropout_per_matrix: bool = True
    keeps_qkv: bool = False
    chunked_loss: bool = False
    torchao_nf4: bool = False
    quantizes_head: bool = False
    quantized_trains_embedding: bool = False
    quantized_pages_optimizer: bool = False
    maps_checkpoint: bool = False
    since: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


class Head(str, Enum):
    """The layer after the decoder's last hidden states."""

    VOCABULARY = "vocabulary"  # logits over all words
    SCORE = "score"  # a number for each label and token, in place of the words
    VALUE = "value"  # one number for each token, beside logits that its loss does not use
    NONE = "none"  # the hidden states themselves, though the weights of a head are there


class Reference(str, Enum):
    """The frozen policy that a loss compares the trained one with."""

    NONE = "none"
    START = "start"  # the model without its adapter; a second copy where it has none
    MODEL = "model"  # a second copy, whatever is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """The tiles in which logits are computed, tokens by words: they never exist whole."""

    tokens: int
    words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherModel:
    """Another model that a job holds, in the format of its own; `key` is the setting that says so.

    `model` is its hub id or folder, None where the settings do not say.
    """

    key: str
    model: str | None
    is_trained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a method's training step computes, where the framework has a loss of its own.

    An adapter that states one says that the whole step is described: the prediction of its method
    is complete.

    Attributes:
        method: the method.
        rows: rows of the forward pass for each sample of the micro batch; 2 for pairs.
        head: the layer after the last hidden states.
        labels: the numbers that a scoring head has for each token.
        reference: the frozen policy; its forward pass comes after the trained one's, without
            gradients. A plan that computes it before training needs none in a step.
        reference_first: its forward pass comes before the trained one's instead.
        reference_quantization: how a second copy is stored, None for as the trained policy.
        tiles: the tiles that log-probabilities are computed in, None where the logits exist whole.
        logit_bytes: where they do, the bytes for each logit of the trained policy at the end of its
            forward pass, and at the most in its backward pass.
        reference_logit_bytes: bytes for each logit of the reference while it is computed.
        further: the models that are neither the trained one nor its reference.
        traced: the function of `oomguard_traced_models` that computes the framework's own loss, as
            `module:name`.
        since: the package and the version from which on all of this holds.
        earlier: what earlier versions compute, where it is known; set only while the version is
            not: an estimate then covers both.
    """

    method: TrainingMethod
    rows: int = 1
    head: Head = Head.VOCABULARY
    labels: int = 1
    reference: Reference = Reference.NONE
    reference_first: bool = False
    reference_quantization: Quantization | None = None
    tiles: Tiles | None = None
    logit_bytes: tuple[float, float] | None = None
    reference_logit_bytes: float = 0.0
    further: tuple[FurtherModel, ...] = ()
    traced: str | None = None
    since: tuple[str, tuple[int, ...]] | None = None
    earlier: Objective | None = None

    @property
    def has_logits(self) -> bool:
        """Return whether there are logits over the vocabulary."""
        return self.head in (Head.VOCABULARY, Head.VALUE)

    def compares(self, plan: Plan) -> bool:
        """Return whether a step of a plan has a forward pass of the reference."""
        return self.reference is not Reference.NONE and not plan.precompute_reference

    def holds_copy(self, plan: Plan) -> bool:
        """Return whether the reference is a second copy of the model."""
        adapter = self.reference is Reference.START and plan.tuning is Tuning.LORA
        return self.compares(plan) and not adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How a step's completions are generated by the policy itself, before its forward passes.

    Attributes:
        sampled_bytes: bytes for each word that sampling a token takes beside its logits.
        iterations: how often each completion is trained on.
        gathers: under ZeRO-3 every rank holds the whole model meanwhile.
        adapter_autocast: a model with an adapter generates under autocast, as one without does.
        by_engine: an inference engine on the same GPUs generates, within a share of its own.
    """

    sampled_bytes: int = 12
    iterations: int = 1
    gathers: bool = True
    adapter_autocast: bool = False
    by_engine: bool = False

    def is_amid_gradients(self, plan: Plan) -> bool:
        """Return whether completions are also generated within an optimizer step's accumulation."""
        every = (plan.generation_batch or 0) // plan.micro_batch * self.iterations
        return every % plan.accumulation != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What the prediction needs to know about a job.

    `code` has the facts of its framework, all else comes from the job's own settings. `objective`
    is what a step computes where the framework has a loss of its own, None where it is the model's
    cross entropy or is not stated. `generation` is how the rows are generated, None where they are
    the data's own.

    `model` is the hub id or the folder as the user wrote it. `base` is the format that the
    framework loads weights in, None where it follows `Plan.precision`; `trained_fp32` says that
    trained parameters are raised to fp32. `new_tokens` are added to the vocabulary;
    `trained_layers` counts the last layers, which partial tuning trains; where it is negative, the
    first ones. `loss_chunk` is the number of
    tokens whose logits are computed at once, None for all. `fused` is the optimizer that updates
    without temporaries, `foreach` the one that makes them for all parameters together. `padded`
    says that every sample is padded to the limit. `component` is the function that
    builds the model, with its arguments, where the settings say one; `step_in_backward` that each
    gradient is used and dropped as it comes; `compiled` that torch.compile makes the kernels.
    `states` is what the optimizer keeps that the framework makes in place of the named one.
    `raises_shards` says that FSDP keeps what is trained in fp32 and gathers it in 16 bits, in
    whatever format it was loaded; `autocasts` that autocast runs over weights in 16 bits, except
    under DeepSpeed. `raised` are parts of the names of modules that full tuning keeps in fp32
    beside matrices in 16 bits, unless the model is sharded or under DeepSpeed: those of embeddings,
    head and norms. `images` are those of one sample. `data` are
    paths of training files as far as the settings name them, of which `columns` are used (none
    given: all); `reduce_bucket` counts numbers in
    DeepSpeed's bucket, None where it follows the model; `overlap_comm` says that it has two.
    """

    code: TrainingCode = TrainingCode()
    objective: Objective | None = None
    generation: Generation | None = None
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
    columns: tuple[str, ...] = ()
    reduce_bucket: int | None = None
    overlap_comm: bool = False
    raises_shards: bool = False
    autocasts: bool = False
    raised: tuple[str, ...] = ()
    states: States | None = None

    @property
    def rows(self) -> int:
        """Rows of the forward pass for each sample of the micro batch."""
        return self.objective.rows if self.objective else 1

    @property
    def scores(self) -> bool:
        """Return whether a head for labels replaces the one for words."""
        return self.objective is not None and self.objective.head is Head.SCORE
