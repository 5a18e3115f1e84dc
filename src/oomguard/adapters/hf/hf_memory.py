"""What the flags of a script on Hugging Face's Trainer say of memory beyond the plan.

Source: trl 1.16.0, trainer/model_config.py; peft 0.21 (adapter weights in fp32 over a base in
half precision); transformers 5.6.0, training_args.py; QwenLM/Qwen finetune.py.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace

from oomguard.adapters import fields
from oomguard.adapters.hf import training_arguments as hf
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import (
    ALL_LINEAR,
    Attention,
    Format,
    LoftqStart,
    Lora,
    MemorySettings,
    TrainingCode,
)
from oomguard.job.plan import Tuning
from oomguard.job.training_job import Job

TRL_RANK = fields.number("lora_r", 16)
QWEN_MODEL = fields.text("model_name_or_path", "Qwen/Qwen-7B")
QWEN_RANK = fields.number("lora_r", 64)
LOFTQ_BITS = fields.number("loftq_bits", 4)
_MODELS = ("model_name_or_path", "model", "model_name", "model_id", "base_model")
_DTYPES = ("torch_dtype", "dtype", "model_dtype")
_TARGETS = ("lora_target_modules", "target_modules", "lora_target")
_SAVED = ("modules_to_save", "lora_modules_to_save", "additional_target")
_DATA = ("train_file", "data_path", "dataset_name", "dataset_path", "data")
_FORMATS = {
    "bfloat16": Format.BF16,
    "bf16": Format.BF16,
    "float16": Format.FP16,
    "fp16": Format.FP16,
    "half": Format.FP16,
    "float32": Format.FP32,
    "fp32": Format.FP32,
}
_EVERY = {(ALL_LINEAR,), ("all",)}
_ATTENTIONS = {"eager": Attention.EAGER, "flash_attention_2": Attention.FLASH}


#: Scripts on the Trainer; one that is not shown is counted as calling PEFT's
#: prepare_model_for_kbit_training, which needs more than not to.
TRAINER_CODE = TrainingCode(kbit_float32=True)
#: trl 1.16, trainer/sft_trainer.py (dpo_trainer.py and reward_trainer.py alike): over a base
#: that bitsandbytes quantizes the adapter is cast to bf16, and nothing is raised to fp32.
TRL_CODE = TrainingCode(quantized_adapter_bf16=True)
_OF_TRL = re.compile(r"(?m)^\s*(from|import) trl\b")
#: Qwen/finetune.py: transformers' former checkpointing; it prepares no model for k-bit training.
QWEN_CODE = TrainingCode(reentrant_checkpointing=True)


def code_of_script(text: str) -> TrainingCode | None:
    """Return how a script treats a base that it quantizes; None if its text does not show it.

    Source: peft 0.21, utils/other.py (prepare_model_for_kbit_training).
    """
    if "prepare_model_for_kbit_training" in text:
        return TRAINER_CODE
    if "peft_config" in text and _OF_TRL.search(text):
        return TRL_CODE
    return TrainingCode() if "get_peft_model" in text else None


def memory_settings_of(
    settings: Settings, job: Job, code: TrainingCode = TRAINER_CODE
) -> MemorySettings:
    """Read what the flags name; a script's own defaults stay unknown."""
    lora = _lora(settings) if job.asked.tuning is Tuning.LORA else None
    optimizer = hf.OPTIMIZER.of(settings)
    reentrant = hf.reentrant(settings)
    if reentrant is not None:
        code = replace(code, reentrant_checkpointing=reentrant)
    return MemorySettings(
        code=code,
        model=_first(settings, _MODELS),
        base=_FORMATS.get((_first(settings, _DTYPES) or "").removeprefix("torch.")),
        trained_fp32=lora is not None,
        lora=lora,
        optimizer=optimizer,
        step_in_backward=hf.steps_in_backward(settings),
        fused="fused" in optimizer,
        attention=_ATTENTIONS.get(str(settings.get("attn_implementation")), Attention.SDPA),
        packing=fields.flag("packing").of(settings) or settings.has("block_size"),
        reduce_bucket=hf.reduce_bucket(settings, job),
        overlap_comm=hf.overlap_comm(settings, job),
        loftq=_loftq(settings),
        data=tuple(
            posixpath.join(job.cwd, path) for path in [_first(settings, _DATA)] if path is not None
        ),
    )


def trl_memory_settings(settings: Settings, job: Job) -> MemorySettings:
    """Read TRL's own flags, with its defaults: weights in fp32, rank 16, dropout 0.05."""
    found = memory_settings_of(settings, job, TRL_CODE)
    lora = found.lora
    if lora is not None:
        lora = replace(
            lora,
            rank=TRL_RANK.of(settings),
            alpha=_number(settings, "lora_alpha") or 32,
            dropout=fields.fraction("lora_dropout", 0.05).of(settings),
        )
    return replace(found, base=found.base or Format.FP32, lora=lora)


def qwen_memory_settings(settings: Settings, job: Job) -> MemorySettings:
    """Read finetune.py's flags, with its defaults; a base model gets its vocabulary trained."""
    found = memory_settings_of(settings, job, QWEN_CODE)
    model = found.model or QWEN_MODEL.default
    saved = () if "chat" in model.lower() or settings.get("q_lora") else ("wte", "lm_head")
    lora = found.lora
    if lora is not None:
        lora = replace(
            lora,
            rank=QWEN_RANK.of(settings),
            alpha=_number(settings, "lora_alpha") or 16,
            targets=_list(settings, _TARGETS) or ("c_attn", "c_proj", "w1", "w2"),
            dropout=fields.fraction("lora_dropout", 0.05).of(settings),
            saved=saved,
        )
    half = Format.FP16 if hf.FP16.of(settings) else Format.BF16
    return replace(
        found,
        model=model,
        base=half,
        trained_fp32=False,
        lora=lora,
        padded=True,
    )


def _lora(settings: Settings) -> Lora:
    rank = next((n for n in (_number(settings, key) for key in ("lora_r", "lora_rank")) if n), 8)
    targets = _list(settings, _TARGETS)
    return Lora(
        rank=rank,
        alpha=_number(settings, "lora_alpha") or 2 * rank,
        targets=(ALL_LINEAR,) if targets in _EVERY or _loftq(settings) else targets,
        dropout=fields.fraction("lora_dropout", 0.0).of(settings),
        saved=_list(settings, _SAVED),
        dora=fields.flag("use_dora").of(settings),
    )


def _loftq(settings: Settings) -> LoftqStart | None:
    if settings.get("init_lora_weights") != "loftq":
        return None
    return LoftqStart(bits=LOFTQ_BITS.of(settings))


def _number(settings: Settings, key: str) -> int | None:
    return fields.maybe_number(key).of(settings)


def _first(settings: Settings, keys: tuple[str, ...]) -> str | None:
    values = (settings.get(key) for key in keys)
    return next((value for value in values if isinstance(value, str) and value), None)


def _list(settings: Settings, keys: tuple[str, ...]) -> tuple[str, ...]:
    return next((words for words in map(settings.words, keys) if words), ())
