"""How programs say that they refuse a setting: the end of an attempt, not of the run.

A job that ran before with fewer changes and now ends with one of these, before its first step,
was refused the change that oomguard made. Each pattern names a real program's words.
"""

from __future__ import annotations

import re

_PATTERNS = (
    r"unrecognized arguments",  # argparse; "Unrecognized arguments" of jsonargparse (LitGPT)
    r"Some keys are not used by the HfArgumentParser",  # transformers, LLaMA-Factory
    r"Key .* is not (?:expected|in struct)",  # jsonargparse, OmegaConf
    r"\bis (?:only|not) (?:compatible|supported)\b",  # LLaMA-Factory, LitGPT, bitsandbytes
    r"\bis incompatible with\b",  # Qwen's finetune.py, LLaMA-Factory
    r"\bis currently not supported\b",  # LitGPT
    r"\bare incompatible with\b",
    r"not compatible with",  # Qwen's finetune.py
    r"is only supported on",  # LitGPT
    r"Please use `?FORCE_TORCHRUN",  # LLaMA-Factory
    r"Cannot (?:resize embedding|use LoRA with)",  # LLaMA-Factory
    r"can use fsdp\+qlora",  # LLaMA-Factory
    r"Quantization and mixed precision",  # LitGPT
    r"No module named '?(?:deepspeed|bitsandbytes|liger_kernel)",
    r"(?:requires|needs|install).{0,40}(?:deepspeed|bitsandbytes|liger)",  # transformers
    r"unexpected keyword argument",
    r"invalid choice",  # argparse: an older version without the word
    r"values that mismatch TrainingArguments",  # transformers, of a DeepSpeed file
    r"Torch not compiled with CUDA enabled",  # PEFT's staged LoftQ, where there is no GPU
    r"(?:missing|lacks) \d+ required positional argument",  # PEFT 0.21's LoftQ on an embedding
    r"Only 4.bit quantization supported at the moment",  # PEFT's replace_lora_weights_loftq
    r"ensure that there is a \(sharded\) safetensors file",  # the same
    r"Bitsandbytes only accepts",  # LLaMA-Factory
    r"cannot fine-?tune|cannot perform fine-tuning on purely quantized",  # transformers
)
_REFUSAL = re.compile("|".join(_PATTERNS), re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Return whether a job's last error says that it does not take a setting."""
    return _REFUSAL.search(text) is not None
