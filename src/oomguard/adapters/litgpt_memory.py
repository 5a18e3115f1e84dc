"""What LitGPT's settings say of memory beyond the plan.

Source: litgpt 0.5.13, finetune/lora.py (setup, fit), lora.py, utils.py (chunked_cross_entropy).
"""

from __future__ import annotations

import posixpath

from oomguard.adapters import fields
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Family, Loop, Lora, MemorySettings, TrainingCode
from oomguard.job.plan import Tuning
from oomguard.job.training_job import Job

#: finetune/*.py: model(input_ids, lm_head_chunk_size=128).
_LOSS_CHUNK = 128
LORA_RANK = fields.number("lora_r", 8)
_SWITCHES = (
    ("lora_query", True, "query"),
    ("lora_key", False, "key"),
    ("lora_value", True, "value"),
    ("lora_projection", False, "projection"),
    ("lora_mlp", False, "mlp"),
    ("lora_head", False, "lm_head"),
)


#: litgpt 0.5.13, finetune/lora.py: fit keeps the logits, setup takes bitsandbytes' PagedAdamW and,
#: since 0.5.3, puts a trained StableEmbedding beside the old one; its attention splits one product.
CODE = TrainingCode(
    loop=Loop.KEEPS_LOGITS,
    fsdp_casts_parameters=False,
    dropout_per_matrix=False,
    keeps_qkv=True,
    quantizes_head=True,
    quantized_trains_embedding=True,
    quantized_pages_optimizer=True,
    maps_checkpoint=True,
    since={"stable_embedding": ("litgpt", (0, 5, 3))},
)


def memory_settings_of(settings: Settings, job: Job, checkpoint: str | None) -> MemorySettings:
    """Read it; LitGPT keeps every number in the format that its precision names."""
    return MemorySettings(
        code=CODE,
        model=checkpoint,
        family=Family.LITGPT,
        trained_fp32=False,
        lora=_lora(settings) if job.asked.tuning is Tuning.LORA else None,
        optimizer=job.asked.optimizer or "AdamW",
        max_grad_norm=None,
        loss_chunk=_LOSS_CHUNK,
        data=_data(settings, job.cwd),
    )


def _lora(settings: Settings) -> Lora:
    targets = tuple(
        name for key, on, name in _SWITCHES if fields.flag(key, default=on).of(settings)
    )
    return Lora(
        rank=LORA_RANK.of(settings),
        alpha=fields.number("lora_alpha", 16).of(settings),
        targets=targets,
        dropout=fields.fraction("lora_dropout", 0.05).of(settings),
    )


def _data(settings: Settings, cwd: str) -> tuple[str, ...]:
    path = settings.get("data.init_args.json_path") or settings.get("data.json_path")
    return (posixpath.join(cwd, path),) if isinstance(path, str) else ()
