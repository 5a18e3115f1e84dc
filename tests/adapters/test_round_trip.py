"""read(write(plan)) == plan: for every framework, where a key stands in the file, on the command
line, in both, or nowhere yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomguard.adapters.base import Adapter
from oomguard.adapters.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.plan import (
    Allocator,
    LossKernel,
    Offload,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)

SMALL = st.integers(1, 64)
MIXED = (Precision.FP32, Precision.BF16_MIXED, Precision.FP16_MIXED)
ON_THE_FLY = tuple(q for q in Quantization if q is not Quantization.PREQUANTIZED)
ZERO = st.sampled_from(
    [
        (Sharding.NONE, frozenset()),
        (Sharding.ZERO1, frozenset()),
        (Sharding.ZERO2, frozenset({Offload.OPTIMIZER})),
        (Sharding.ZERO3, frozenset()),
        (Sharding.ZERO3, frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})),
    ]
)
TRAINER: dict[str, st.SearchStrategy[Any]] = {
    "micro_batch": SMALL,
    "accumulation": SMALL,
    "sequence_length": SMALL,
    "checkpointing": st.booleans(),
    "eval_batch": SMALL,
    "eval_accumulation": st.integers(0, 8),
    "prediction_loss_only": st.booleans(),
    "preprocess_workers": SMALL,
    "optimizer": st.sampled_from(["adamw_torch", "adafactor", "paged_adamw_8bit"]),
    "loader_workers": st.integers(0, 8),
    "pin_memory": st.booleans(),
    "auto_find_batch_size": st.booleans(),
    "loss_kernel": st.sampled_from(LossKernel),
    "lora_rank": SMALL,
    "low_cpu_mem_usage": st.booleans(),
    "allocator": st.sampled_from(Allocator),
}


@dataclass(frozen=True)
class Case:
    """One way to state a job; `fields` are the choices that it has."""

    adapter: Adapter
    argv: str
    text: str | None
    fields: dict[str, st.SearchStrategy[Any]]
    name: str = "train.yaml"
    zero: bool = True


LF = {
    **TRAINER,
    "precision": st.sampled_from((*MIXED, Precision.BF16_TRUE)),
    "quantization": st.sampled_from(ON_THE_FLY),
    "frozen": st.frozensets(st.sampled_from(Part)),
    "image_pixels": SMALL,
    "video_pixels": SMALL,
}
LF_FILE = """\
model_name_or_path: Qwen/Qwen2-VL-7B-Instruct  # vision
template: qwen2_vl
finetuning_type: lora
per_device_train_batch_size: 4
cutoff_len: 33
preprocessing_num_workers: 3
"""
LF_WORDS = (
    "per_device_train_batch_size=2 gradient_accumulation_steps=3 cutoff_len=9 image_max_pixels=9"
    " disable_gradient_checkpointing=true bf16=true fp16=false pure_bf16=false lora_rank=4"
    " quantization_bit=4 quantization_type=fp4 double_quantization=false deepspeed=null"
    " freeze_vision_tower=false low_cpu_mem_usage=false enable_liger_kernel=true"
)
HF = {
    **TRAINER,
    "precision": st.sampled_from(MIXED),
    "quantization": st.sampled_from(ON_THE_FLY),
}
HF_FLAGS = (
    "--dataset_num_proc 2 --max_length 8 --lora_r 4 --low_cpu_mem_usage False --load_in_4bit"
    " --load_in_8bit False"
    " --use_bnb_nested_quant False --bnb_4bit_quant_type=fp4"
)
HF_FILE = """\
max_length: 8  # tokens
dataset_num_proc: 2
lora_r: 4
low_cpu_mem_usage: false
load_in_4bit: true
load_in_8bit: false
use_bnb_nested_quant: false
bnb_4bit_quant_type: nf4
"""
HF_JSON = (
    '{"max_length": 8, "dataset_num_proc": 2, "lora_r": 4, "low_cpu_mem_usage": false,'
    ' "load_in_4bit": true,'
    ' "load_in_8bit": false, "use_bnb_nested_quant": false, "bnb_4bit_quant_type": "nf4"}'
)
LIT = {
    "micro_batch": SMALL,
    "accumulation": SMALL,
    "sequence_length": SMALL,
    "precision": st.sampled_from(Precision),
    "quantization": st.sampled_from(ON_THE_FLY),
    "lora_rank": SMALL,
    "optimizer": st.sampled_from(["AdamW", "torch.optim.SGD"]),
    "allocator": st.sampled_from(Allocator),
}
LIT_FILE = """\
checkpoint_dir: c
train:
  # samples of a step
  global_batch_size: 7
  micro_batch_size: 2
  max_seq_length: 8
"""
LIT_WORDS = (
    "--train.global_batch_size 9 --train.micro_batch_size=2 --train.max_seq_length 8"
    " --precision 16-true --quantize bnb.fp4 --lora_r 2 --optimizer SGD"
)
CASES = {
    "llamafactory-file": Case(LlamaFactory(), "lmf train train.yaml", LF_FILE, LF),
    "llamafactory-words": Case(LlamaFactory(), f"lmf train train.yaml {LF_WORDS}", LF_FILE, LF),
    "llamafactory-flags": Case(
        LlamaFactory(),
        "lmf train --model_name_or_path Qwen/Qwen2-VL --fp16 --preprocessing_num_workers 2",
        None,
        LF,
    ),
    "litgpt-file": Case(LitGPT(), "litgpt finetune --config train.yaml", LIT_FILE, LIT, zero=False),
    "litgpt-late": Case(
        LitGPT(), f"litgpt finetune --config train.yaml {LIT_WORDS}", LIT_FILE, LIT, zero=False
    ),
    "litgpt-early": Case(
        LitGPT(), f"litgpt finetune {LIT_WORDS} --config=train.yaml", LIT_FILE, LIT, zero=False
    ),
    "litgpt-flags": Case(LitGPT(), f"litgpt finetune c {LIT_WORDS}", None, LIT, zero=False),
    "hf-flags": Case(HFTrainer(), f"torchrun train.py {HF_FLAGS}", None, HF),
    "hf-flat": Case(HFTrainer(), "python train.py --bf16", HF_FILE, HF),
    "hf-json": Case(HFTrainer(), "python train.py args.json", HF_JSON, HF, name="args.json"),
}


@pytest.mark.parametrize("gpus", [1, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@settings(deadline=None, max_examples=60)  # a busy machine is no failure
@given(data=st.data())
def test_a_plan_that_is_written_is_read_back(
    bench: Callable[..., Any], folder: str, case: Case, gpus: int, data: st.DataObject
) -> None:
    table = bench(case.adapter, gpus=gpus)
    job = table.job(case.argv, case.text, case.name)
    chosen = data.draw(st.sets(st.sampled_from(sorted(case.fields))))
    plan = replace(job.asked, **{name: data.draw(case.fields[name]) for name in sorted(chosen)})
    if case.zero and data.draw(st.booleans()):
        sharding, offload = data.draw(ZERO)
        plan = replace(plan, sharding=sharding, offload=offload)
    command = case.adapter.write(job, plan, folder)
    again = table.reread(job, command)
    assert again.asked == plan
    assert (again.world, again.device) == (job.world, job.device)
    assert case.adapter.write(again, again.asked, folder).argv == command.argv


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_field_of_a_case_is_one_that_the_job_has(
    bench: Callable[..., Any], case: Case
) -> None:
    asked: Plan = bench(case.adapter).job(case.argv, case.text, case.name).asked
    assert [name for name in case.fields if getattr(asked, name) is None] == []
    assert asked.tuning is Tuning.LORA
