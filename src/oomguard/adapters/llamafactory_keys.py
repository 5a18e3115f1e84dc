"""The bindings of LLaMA-Factory, and the plans that it refuses.

Source: llamafactory 0.9.5, hparams/ (parser.py for the refusals), data/template.py,
model/model_utils/quantization.py.
"""

from __future__ import annotations

import re
from dataclasses import replace

from oomguard.adapters import fields
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.fields import Binding, Bindings, Edits, choice, direct, flag
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.liger import FUSED, not_fused
from oomguard.adapters.llamafactory_memory import (
    DORA,
    DOUBLE,
    EIGHT,
    FOUR,
    KIND,
    LORA_ALPHA,
    LORA_RANK,
    MODEL,
    PACKING,
    STAGE,
    TYPE,
    packs,
    quantized_to,
)
from oomguard.adapters.llamafactory_methods import PPO_REFUSALS
from oomguard.adapters.llamafactory_optimizers import BADAM
from oomguard.configfile.layered import Settings
from oomguard.job.plan import (
    ZERO,
    EmbeddingRows,
    LossKernel,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job

#: Templates whose plugin takes images, sound or video (data/template.py).
_MULTIMODAL_TEMPLATE = re.compile(
    r"dots_ocr|ernie_vl|gemma3|gemma3n|gemma4n?|glm4v|glm4_5v|glm_ocr|granite3_vision|intern_vl"
    r"|intern_s1|keye_vl|kimi_vl|lfm2_vl|llama4|mllama|llava.*|mimo_vl|minicpm_[vo].*"
    r"|mistral_small|ministral3|paligemma.*|pixtral|qwen\d?_audio|qwen\d_omni.*|qwen\d_vl.*"
    r"|qwen3_[56].*|video_llava|yi_vl|youtu_vl"
)
MULTIMODAL_MODEL = re.compile(
    r"\b(qwen[\d.]*-?(vl|audio|omni)|llava|internvl|pixtral|paligemma|minicpm-[vo])", re.IGNORECASE
)
#: Of these, what hears and does not see.
_AUDIO = re.compile(r"\bqwen\d?[-_]audio", re.IGNORECASE)
_MEDIA_KEYS = ("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_fps", "media_dir")

_PURE_BF16 = flag("pure_bf16")
_BITS = fields.maybe_number("quantization_bit")
_METHOD = fields.text("quantization_method", "bnb")
#: The second is that of versions before 0.9.3.
_BNB = ("bnb", "bitsandbytes")
_PIXELS, _LEAST_PIXELS = (
    fields.number("image_max_pixels", 768 * 768),
    fields.number("image_min_pixels", 32 * 32),
)
_VIDEO, _LEAST_VIDEO = (
    fields.number("video_max_pixels", 256 * 256),
    fields.number("video_min_pixels", 16 * 16),
)
_LENGTH = fields.number("cutoff_len", 2048)
_PARTS = {
    Part.VISION_TOWER: flag("freeze_vision_tower", default=True),
    Part.PROJECTOR: flag("freeze_multi_modal_projector", default=True),
    Part.LANGUAGE_MODEL: flag("freeze_language_model"),
}
_TUNINGS = {
    "lora": Tuning.LORA,
    "full": Tuning.FULL,
    "freeze": Tuning.PARTIAL,
    "oft": Tuning.OTHER,
}
_LIGER = flag("enable_liger_kernel")
#: Losses that stage sft computes from the model's logits: train/sft/trainer.py, where the Trainer
#: then calls the model without labels, and Liger's kernel computes no loss.
_FROM_LOGITS = (flag("use_dft_loss"), flag("use_eaft_loss"))
#: The models that model_utils/liger_kernel.py hands to Liger, and whose loss Liger fuses.
LIGER_MODELS = FUSED & {
    *("gemma", "gemma2", "gemma3", "gemma3_text", "glm4", "glm4v", "granite", "llama", "llava"),
    *("mistral", "mixtral", "mllama", "olmo2", "paligemma", "phi3", "qwen2", "qwen2_vl"),
    *("qwen2_5_vl", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "gpt_oss"),
}


def is_multimodal(settings: Settings) -> bool:
    """Return whether the model takes images, sound or video, as far as the settings tell."""
    template = settings.get("template")
    return (
        (isinstance(template, str) and bool(_MULTIMODAL_TEMPLATE.fullmatch(template)))
        or bool(MULTIMODAL_MODEL.search(MODEL.of(settings) or ""))
        or any(settings.has(key) for key in _MEDIA_KEYS)
    )


def _sees(settings: Settings) -> bool:
    """Return whether the model takes images or video."""
    named = (str(settings.get("template") or ""), MODEL.of(settings) or "")
    return is_multimodal(settings) and not any(_AUDIO.search(name) for name in named)


def _sequence_length(settings: Settings) -> int | None:
    # "Loading dataset from disk will ignore other data arguments."
    return None if settings.get("tokenized_path") else _LENGTH.of(settings)


def _overlong(settings: Settings) -> Overlong | None:
    if settings.get("tokenized_path"):
        return None
    chunks = settings.get("stage") == "pt" and packs(settings)
    return Overlong.CHUNKED if chunks else Overlong.CUT


def _overlong_edits(settings: Settings, value: object) -> Edits | None:
    # In the other stages packing puts samples together that were cut before.
    chunked = value is Overlong.CHUNKED
    return {PACKING: chunked} if settings.get("stage") == "pt" else None


def _pixels(settings: Settings) -> int | None:
    return _PIXELS.of(settings) if _sees(settings) else None


def _video_pixels(settings: Settings) -> int | None:
    return _VIDEO.of(settings) if _sees(settings) else None


def _frozen(settings: Settings) -> frozenset[Part] | None:
    if not is_multimodal(settings):
        return None
    return frozenset(part for part, key in _PARTS.items() if key.of(settings))


def _frozen_edits(_: Settings, value: object) -> Edits | None:
    wanted = value if isinstance(value, frozenset) else frozenset()
    return {key: part in wanted for part, key in _PARTS.items()}


def _precision(settings: Settings) -> Precision:
    return Precision.BF16_TRUE if _PURE_BF16.of(settings) else hf.mixed_precision(settings)


def _precision_edits(settings: Settings, value: object) -> Edits | None:
    if value is Precision.BF16_TRUE:
        return {_PURE_BF16: True, hf.FP16: False}
    mixed = hf.precision_edits(settings, value)
    return None if mixed is None else {**mixed, _PURE_BF16: False}


def _quantization(settings: Settings) -> Quantization | None:
    bits = _BITS.of(settings)
    if bits is not None and _METHOD.of(settings) not in _BNB:
        return None
    return quantized_to(settings, bits)


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    stated = _METHOD.of(settings)
    method = stated if stated in _BNB else _METHOD.default
    if value is Quantization.NONE:
        return {_BITS: None}
    if value is Quantization.INT8:
        return {_BITS: EIGHT, _METHOD: method}
    four = hf.spell_four_bit(value)
    if four is None:
        return None
    kind, double = four
    return {
        _BITS: FOUR,
        _METHOD: method,
        KIND: kind,
        DOUBLE: double,
    }


def _rank(settings: Settings) -> int | None:
    return LORA_RANK.of(settings) if TYPE.of(settings) == "lora" else None


def _rank_edits(settings: Settings, value: object) -> Edits | None:
    # An alpha that is not stated follows the rank; changing one must not change the other.
    alpha = LORA_ALPHA.of(settings) or 2 * LORA_RANK.of(settings)
    return {LORA_ALPHA: alpha, LORA_RANK: value}


def _loss_kernel(settings: Settings) -> LossKernel:
    fused = _LIGER.of(settings) and _may_fuse(settings)
    return LossKernel.FUSED if fused else LossKernel.EAGER


def _may_fuse(settings: Settings) -> bool:
    """Return whether Liger may compute the loss; other stages need logits (model/loader.py)."""
    stage = STAGE.of(settings)
    return stage == "pt" or (stage == "sft" and not any(one.of(settings) for one in _FROM_LOGITS))


BINDINGS = Bindings(
    bindings=(
        *hf.SHARED,
        Binding(
            field="sequence_length",
            read=_sequence_length,
            edits=lambda _, value: {_LENGTH: value},
        ),
        Binding(field="overlong", read=_overlong, edits=_overlong_edits),
        Binding(field="image_pixels", read=_pixels, edits=lambda _, value: {_PIXELS: value}),
        Binding(
            field="video_pixels",
            read=_video_pixels,
            edits=lambda _, value: {_VIDEO: value},
        ),
        fields.stated("preprocess_workers", fields.maybe_number("preprocessing_num_workers")),
        fields.switch(
            "checkpointing",
            flag("disable_gradient_checkpointing"),
            on=False,
            off=True,
        ),
        Binding(field="precision", read=_precision, edits=_precision_edits),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        choice("tuning", TYPE, _TUNINGS),
        Binding(field="lora_rank", read=_rank, edits=_rank_edits),
        Binding(field="frozen", read=_frozen, edits=_frozen_edits),
        replace(hf.loss_kernel("enable_liger_kernel"), read=_loss_kernel),
        direct("low_cpu_mem_usage", flag("low_cpu_mem_usage", default=True)),
    )
)


def _sharded(plan: Plan) -> bool:
    return plan.sharding in (Sharding.ZERO3, Sharding.FSDP)


def _quantized(job: Job, plan: Plan) -> bool:
    """Return whether LLaMA-Factory itself quantizes: `quantization_bit` is set."""
    return plan.quantization in hf.ON_THE_FLY and job.stored_as is None


def _with_zero3(key: str, message: str) -> Refusal:
    return Refusal(
        message=message, when=lambda s, _, plan: plan.sharding is Sharding.ZERO3 and flag(key).of(s)
    )


#: What llamafactory/hparams/finetuning_args.py takes.
_FINETUNING = ("lora", "oft", "freeze", "full")


def _with_quantization(key: str, message: str) -> Refusal:
    return Refusal(
        message=message,
        when=lambda s, job, plan: _quantized(job, plan) and bool(s.get(key)),
        key=key,
    )


def _galore(settings: Settings) -> bool:
    return any(flag(key).of(settings) for key in ("use_galore", "use_apollo"))


_NO_RESIZE = "Cannot resize embedding layers of a quantized model."
REFUSALS = (
    Refusal(
        message="Invalid fine-tuning method.",
        when=lambda s, _, __: s.get("finetuning_type") not in (None, *_FINETUNING),
        key="finetuning_type",
    ),
    Refusal(
        message="Quantization is only compatible with the LoRA or OFT method.",
        when=lambda _, job, plan: (
            _quantized(job, plan) and plan.tuning in (Tuning.FULL, Tuning.PARTIAL)
        ),
    ),
    _with_quantization("resize_vocab", _NO_RESIZE),
    _with_quantization("add_tokens", _NO_RESIZE),
    _with_quantization("add_special_tokens", _NO_RESIZE),
    _with_quantization("new_special_tokens_config", _NO_RESIZE),
    _with_quantization(
        "pissa_init", "Please use scripts/pissa_init.py to initialize PiSSA for a quantized model."
    ),
    _with_quantization("fp8", "FP8 training is not compatible with quantization."),
    Refusal(
        message="Cannot create new adapter upon a quantized model.",
        when=lambda s, job, plan: (
            _quantized(job, plan)
            and bool(s.get("adapter_name_or_path"))
            and flag("create_new_adapter").of(s)
        ),
    ),
    Refusal(
        message="Quantized model only accepts a single adapter. Merge them first.",
        when=lambda s, job, plan: (
            _quantized(job, plan) and "," in str(s.get("adapter_name_or_path") or "")
        ),
    ),
    Refusal(
        message="Only 4-bit quantized model can use fsdp+qlora or auto device map.",
        when=lambda _, __, plan: _sharded(plan) and plan.quantization is Quantization.INT8,
    ),
    Refusal(
        message="DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models.",
        when=lambda _, job, plan: _sharded(plan) and job.stored_as is not None,
    ),
    Refusal(
        message="Quantized models can only be used for the LoRA or OFT tuning.",
        when=lambda _, job, plan: (
            job.stored_as is not None and plan.tuning in (Tuning.FULL, Tuning.PARTIAL)
        ),
    ),
    Refusal(
        message="Cannot initialize PiSSA adapter on quantized models.",
        when=lambda s, job, _: job.stored_as is not None and flag("pissa_init").of(s),
    ),
    Refusal(
        message="DoRA is not compatible with PTQ-quantized models.",
        when=lambda s, job, _: (
            job.stored_as is not None and job.stored_as.method != "bitsandbytes" and DORA.of(s)
        ),
    ),
    Refusal(
        message="HQQ and EETQ quantization is incompatible with DeepSpeed ZeRO-3 or FSDP.",
        when=lambda s, _, plan: _sharded(plan) and _METHOD.of(s) in ("hqq", "eetq"),
    ),
    Refusal(
        message="`pure_bf16` is incompatible with DeepSpeed ZeRO-3.",
        when=lambda _, __, plan: (
            plan.sharding is Sharding.ZERO3 and plan.precision is Precision.BF16_TRUE
        ),
    ),
    _with_zero3("use_unsloth", "Unsloth is incompatible with DeepSpeed ZeRO-3."),
    _with_zero3("use_kt", "KTransformers is incompatible with DeepSpeed ZeRO-3."),
    _with_zero3(
        "predict_with_generate", "`predict_with_generate` is incompatible with DeepSpeed ZeRO-3."
    ),
    _with_zero3(
        "pissa_init", "Please use scripts/pissa_init.py to initialize PiSSA in DeepSpeed ZeRO-3."
    ),
    Refusal(
        message="GaLore and APOLLO are incompatible with DeepSpeed yet.",
        when=lambda s, _, plan: plan.sharding in ZERO and _galore(s),
    ),
    Refusal(
        message="Cannot use LoRA with GaLore, APOLLO or BAdam together.",
        when=lambda s, _, plan: plan.tuning is Tuning.LORA and (_galore(s) or BADAM.of(s)),
    ),
    Refusal(
        message="Adapter is only valid for the LoRA method.",
        when=lambda s, _, plan: (
            plan.tuning is not Tuning.LORA and bool(s.get("adapter_name_or_path"))
        ),
    ),
    Refusal(
        message="`image_max_pixels` cannot be smaller than `image_min_pixels`.",
        when=lambda s, _, plan: (
            _sees(s) and plan.image_pixels is not None and plan.image_pixels < _LEAST_PIXELS.of(s)
        ),
    ),
    Refusal(
        message="`video_max_pixels` cannot be smaller than `video_min_pixels`.",
        when=lambda s, _, plan: (
            _sees(s) and plan.video_pixels is not None and plan.video_pixels < _LEAST_VIDEO.of(s)
        ),
    ),
    Refusal(
        message="This device does not support `pure_bf16`.",
        when=lambda _, job, plan: (
            plan.precision is Precision.BF16_TRUE and (job.device is Device.CPU or not job.bfloat16)
        ),
    ),
    Refusal(
        message="LLaMA-Factory loads the base of an adapter in bf16 already.",
        when=lambda _, job, plan: (
            plan.precision is Precision.BF16_TRUE
            and job.asked.precision is not Precision.BF16_TRUE
            and job.asked.tuning is Tuning.LORA
        ),
    ),
    Refusal(
        message="LLaMA-Factory 0.9.5 has no setting for PEFT's trainable_token_indices.",
        when=lambda _, job, plan: (
            plan.embedding_rows is not job.asked.embedding_rows
            and plan.embedding_rows is EmbeddingRows.NEW
        ),
    ),
    Refusal(
        message="The LoRA rank is that of the adapter in `adapter_name_or_path`.",
        when=lambda s, job, plan: (
            plan.lora_rank != job.asked.lora_rank
            and job.asked.lora_rank is not None
            and bool(s.get("adapter_name_or_path"))
        ),
    ),
    *PPO_REFUSALS,
    hf.NO_METRIC,
    not_fused(LIGER_MODELS, "Current model does not support liger kernel."),
    Refusal(
        message="Current training stage does not support chunked cross entropy.",
        when=lambda s, job, plan: (
            plan.loss_kernel is LossKernel.FUSED is not job.asked.loss_kernel and not _may_fuse(s)
        ),
    ),
    Refusal(
        message="low_cpu_mem_usage is switched off by LLaMA-Factory itself under ZeRO-3.",
        when=lambda _, job, plan: (
            plan.sharding is Sharding.ZERO3
            and plan.low_cpu_mem_usage != job.asked.low_cpu_mem_usage
        ),
    ),
)
