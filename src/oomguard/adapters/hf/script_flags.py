"""Flags of a script's own whose names say that they change memory; its code is not known.

Source: transformers 5.23.0, training_args.py; trl 1.16.0, trainer/model_config.py; the flags that
hf_trainer.py and hf_memory.py read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.script_code import PREPARES, prepares
from oomguard.adapters.hf.script_values import flags_read
from oomguard.adapters.settings.trainer_settings import CHECKPOINTING, SEQ2SEQ, TRAINER
from oomguard.adapters.settings.trl_settings import TRL
from oomguard.configfile.layered import Settings
from oomguard.job.unmodelled import Direction, Unmodelled

_TELLING = re.compile(
    r"(^|_)(batch|q?lora|peft|fsdp|deepspeed|zero|ds|quant\w*|[48]bit|[48]_bit"
    r"|bits|precision|checkpointing|offload|(un)?freeze\w*|frozen|vision|projector|mm|(fine)?tun(e|er|ing)"
    r"|teacher|use_liger|cross_entropy|fused_(ce|loss)|unsloth|[tpcse]p|[pcse]p_size"
    r"|(tensor|pipeline|sequence|context|expert)_parallel\w*)(_|$)"
)
#: What is read beside the settings of the Trainer and of TRL's commands, or shapes what is read.
_READ = """
init_lora_weights use_lora use_peft_lora lora_rank lora_bias lora_task_type lora_init q_lora
target_modules lora_target additional_target lora_modules_to_save use_4bit_quantization
use_8bit_quantization use_nested_quant bnb_4bit_compute_dtype bnb_4bit_quant_storage_dtype
loftq_bits loftq_iter peft_model_id lora_weight_path use_unsloth tp_size
"""
_KNOWN = frozenset(_READ.split()).union(
    TRAINER.names, SEQ2SEQ.names, CHECKPOINTING.names, *(groups.names for groups in TRL.values())
)
#: Former names of the Trainer's own settings.
_FORMER = re.compile(r"^(per_(gpu|device)_|dataloader_|dataset_|preprocessing_|eval_|batch_eval_)")
_OFF = ("none", "false", "no", "")
#: What reads all of the Trainer's arguments, and so has its defaults.
_PARSERS = re.compile(r"\b(HfArgumentParser|TrlParser|H4ArgumentParser)\b")


#: Words in the name of a script that loads quantized weights.
_QUANTIZES = re.compile(r"q_?lora|[48]_?bit|int[48]|bnb|gptq|awq")
_UNSLOTH = re.compile(r"(?m)^\s*(from|import) unsloth\b")
#: What shows that a script trains by itself, and does not start what is in other files.
_TRAINS = re.compile(
    r"(Trainer|Arguments|Parser|Config|\bpeft)\b|\.backward\(|_peft_|from_pretrained"
)


def unseen(program: str, code: str, *, quantizes: bool) -> Iterator[Unmodelled]:
    """Yield what a script does where its code does not show it; `code` is empty if not found."""
    if not code and not quantizes and _QUANTIZES.search(program.lower()):
        yield Unmodelled(
            key="script",
            effect="its name speaks of quantized weights, which no flag states: they are counted "
            "as if they were not",
            direction=Direction.LESS,
        )
    if _UNSLOTH.search(code):
        yield Unmodelled(
            key="unsloth",
            effect="the script imports Unsloth, whose kernels and checkpointing are not modelled",
            direction=Direction.EITHER,
        )
    if not quantizes and prepares(code):
        yield Unmodelled(
            key=PREPARES,
            effect="it raises the 16-bit weights to fp32, as they are not quantized, which is not "
            "counted",
            direction=Direction.EITHER,
        )
    if code and not _TRAINS.search(code):
        yield Unmodelled(
            key="script",
            effect="it starts what is in other files, which are not read: what they set besides "
            "its flags is not known",
            direction=Direction.EITHER,
        )


def unread_flags(settings: Settings, code: str) -> Iterator[Unmodelled]:
    """Yield what a script is told that would change its memory, and is not read here.

    Nor is its batch known, where no flag states it and its code does not show whose default it has.
    """
    if not settings.has(hf.MICRO_BATCH.name) and not _PARSERS.search(code):
        yield Unmodelled(
            key=hf.MICRO_BATCH.name,
            effect="not stated, nor the script's own known: the Trainer's default is counted",
            direction=Direction.EITHER,
        )
    read = flags_read(code)
    in_file = map(str, settings.file.values) if settings.file else ()
    for name in dict.fromkeys((*in_file, *settings.early.names(), *settings.late.names())):
        plain = name.replace("-", "_")
        if plain in _KNOWN or plain in read or _FORMER.match(plain) or not _TELLING.search(plain):
            continue
        if str(settings.get(name)).lower() not in _OFF:
            yield Unmodelled(
                key=name,
                effect="a setting of the script's own, whose code is not read for it",
                direction=Direction.EITHER,
                line=settings.origin(name).line,
            )
