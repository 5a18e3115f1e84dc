"""What LLaMA-Factory's settings say of memory beyond the plan.

Source: llamafactory 0.9.5, hparams/{model_args,finetuning_args,data_args}.py, model/adapter.py
(which parameters are raised to fp32, which modules are saved), model/model_utils/embedding.py.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace

from oomguard.adapters import fields
from oomguard.adapters import llamafactory_optimizers as optimizers
from oomguard.adapters.hf import training_arguments as hf
from oomguard.configfile import values
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import (
    ALL_LINEAR,
    Attention,
    Format,
    Lora,
    MemorySettings,
    TrainingCode,
)
from oomguard.job.plan import Quantization, Sharding, Tuning
from oomguard.job.training_job import Job

MODEL = fields.maybe_text("model_name_or_path")
LORA_ALPHA = fields.maybe_number("lora_alpha")
LORA_RANK = fields.number("lora_rank", 8)
#: Of a negative number the first layers are trained, otherwise the last ones.
_LAYERS = fields.Key(name="freeze_trainable_layers", decode=values.integer, default=2)
PACKING = fields.flag("packing")
DORA = fields.flag("use_dora")
_REENTRANT = fields.flag("use_reentrant_gc", default=True)
STAGE = fields.text("stage", "sft")
TYPE = fields.text("finetuning_type", "lora")
KIND, DOUBLE = (
    fields.text("quantization_type", "nf4"),
    fields.flag("double_quantization", default=True),
)
EIGHT, FOUR = 8, 4
_ATTENTIONS = {"disabled": Attention.EAGER, "fa2": Attention.FLASH, "fa3": Attention.FLASH}
_RESIZED = ("embed_tokens", "lm_head")


#: llamafactory 0.9.5, model/model_utils/checkpointing.py: reentrant, and only for layers with a
#: trained parameter.
CODE = TrainingCode(reentrant_checkpointing=True, checkpoints_trained_layers=True)


def memory_settings_of(settings: Settings, job: Job) -> MemorySettings:
    """Read it; a base in half precision is what LLaMA-Factory loads for every trained model."""
    resizes = bool(new_tokens(settings)) or fields.flag("resize_vocab").of(settings)
    return MemorySettings(
        code=replace(CODE, reentrant_checkpointing=_REENTRANT.of(settings)),
        model=MODEL.of(settings),
        base=Format.FP16 if hf.FP16.of(settings) else Format.BF16,
        trained_fp32=job.asked.sharding is not Sharding.ZERO3,
        lora=_lora(settings, resizes=resizes) if job.asked.tuning is Tuning.LORA else None,
        new_tokens=new_tokens(settings),
        trained_layers=_LAYERS.of(settings),
        optimizer=hf.OPTIMIZER.of(settings),
        states=optimizers.states(settings),
        step_in_backward=optimizers.steps_in_backward(settings),
        max_grad_norm=1.0,
        attention=_ATTENTIONS.get(str(settings.get("flash_attn")), Attention.SDPA),
        packing=packs(settings),
        images=1 if job.multimodal else 0,
        data=_data(settings, job.cwd),
        reduce_bucket=hf.reduce_bucket(settings, job),
        overlap_comm=hf.overlap_comm(settings, job),
    )


def quantized_to(settings: Settings, bits: int | None) -> Quantization | None:
    """Return the format that bitsandbytes quantizes to; None if the bits are unknown."""
    four = hf.four_bit(KIND.of(settings), DOUBLE.of(settings))
    return Quantization.NONE if bits is None else {EIGHT: Quantization.INT8, FOUR: four}.get(bits)


def new_tokens(settings: Settings) -> int:
    """Count the tokens that are added to the vocabulary, as far as the settings name them."""
    stated = (settings.get("add_tokens"), settings.get("add_special_tokens"))
    texts = [text for text in stated if isinstance(text, str)]
    return sum(len([token for token in text.split(",") if token.strip()]) for text in texts)


def _lora(settings: Settings, *, resizes: bool) -> Lora:
    rank = LORA_RANK.of(settings)
    targets = settings.words("lora_target") or ("all",)
    saved = settings.words("additional_target")
    return Lora(
        rank=rank,
        alpha=LORA_ALPHA.of(settings) or 2 * rank,
        targets=(ALL_LINEAR,) if targets == ("all",) else targets,
        dropout=fields.fraction("lora_dropout", 0.0).of(settings),
        saved=saved or (_RESIZED if resizes else ()),
        dora=DORA.of(settings),
    )


def packs(settings: Settings) -> bool:
    """Return whether samples are put together up to the length."""
    stated = settings.get("packing")
    if stated is None:
        return STAGE.of(settings) == "pt" or fields.flag("neat_packing").of(settings)
    return PACKING.of(settings)


def _data(settings: Settings, cwd: str) -> tuple[str, ...]:
    folder = posixpath.join(cwd, fields.text("dataset_dir", "data").of(settings))
    return tuple(posixpath.join(folder, name) for name in settings.words("dataset"))
