from __future__ import annotations

import pytest

from oomguard.evidence.refusals import is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "train.py: error: unrecognized arguments: --dataloader_pin_memory False",
        "error: Unrecognized arguments: --quantize",
        "ValueError: Some keys are not used by the HfArgumentParser: ['x']",
        "ValueError: Quantization is only compatible with the LoRA or OFT method.",
        "ValueError: Only 4-bit quantized model can use fsdp+qlora or auto device map.",
        "ValueError: DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models.",
        "ValueError: Cannot resize embedding layers of a quantized model.",
        "ValueError: Cannot use LoRA with GaLore, APOLLO or BAdam together.",
        "ValueError: Unsloth is incompatible with DeepSpeed ZeRO-3.",
        "ValueError: Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training.",
        "ValueError: Quantization and mixed precision is not supported.",
        "NotImplementedError: Quantization is currently not supported for multi-GPU training.",
        "ValueError: Bitsandbytes is only supported on CUDA GPUs.",
        "RuntimeError: ZeRO3 is incompatible with LoRA when finetuning on base model.",
        "RuntimeError: DeepSpeed Zero-3 is not compatible with passing a device_map.",
        "ModuleNotFoundError: No module named 'deepspeed'",
        "ImportError: Using `bitsandbytes` 4-bit quantization requires bitsandbytes: install it",
        "TypeError: __init__() got an unexpected keyword argument 'use_liger_kernel'",
    ],
)
def test_the_words_of_real_programs_are_known(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "FileNotFoundError: [Errno 2] No such file or directory: 'data.json'",
        "ValueError: The loss is NaN",
        "ModuleNotFoundError: No module named 'my_dataset'",
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x8 and 4x4)",
        "KeyError: 'instruction'",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "",
    ],
)
def test_a_jobs_own_failures_are_none(text):
    assert not is_refusal(text)
