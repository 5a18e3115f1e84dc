"""read(write(plan)) == plan: for every framework, where a key stands in the file, on the command
line, in both, or nowhere yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.contract import Adapter
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.peft_loftq import PeftLoftq
from oomguard.adapters.qwen import Qwen
from oomguard.adapters.torchtune import Torchtune
from oomguard.adapters.trl import Trl
from oomguard.job.plan import (
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


def without(*names: str) -> dict[str, st.SearchStrategy[Any]]:
    return {field: values for field, values in TRAINER.items() if field not in names}


TRL = {
    **without("loss_kernel", "low_cpu_mem_usage"),
    "precision": st.sampled_from((*MIXED, Precision.BF16_TRUE)),
    "quantization": st.sampled_from(ON_THE_FLY),
}
TRL_FILE = """\
model_name_or_path: m
dataset_name: data  # a folder
use_peft: true
max_length: 33
dataset_num_proc: 4
"""
TRL_WORDS = (
    "--max_length 9 --dtype bfloat16 --fp16 False --bf16 True --load_in_4bit True --lora_r 4"
    " --use_bnb_nested_quant --gradient_checkpointing False --per_device_train_batch_size=2"
)
QWEN = {
    **without("loss_kernel", "low_cpu_mem_usage", "preprocess_workers"),
    "precision": st.sampled_from(MIXED),
}
QWEN_FLAGS = "--use_lora --lazy_preprocess True --model_max_length 512 --data_path d --bf16 True"
LOFTQ = {
    **without("low_cpu_mem_usage", "preprocess_workers"),
    "precision": st.sampled_from(MIXED),
}
LOFTQ_FLAGS = "--init_lora_weights loftq --loftq_bits 8 --staged False --max_length 8 --lora_r 4"
AXOLOTL = {
    "micro_batch": SMALL,
    "accumulation": SMALL,
    "eval_batch": SMALL,
    "sequence_length": SMALL,
    "checkpointing": st.booleans(),
    "precision": st.sampled_from((Precision.FP32, Precision.BF16_TRUE)),
    "quantization": st.sampled_from(
        (Quantization.NONE, Quantization.INT8, Quantization.NF4_DOUBLE)
    ),
    "lora_rank": SMALL,
    "optimizer": st.sampled_from(["adamw_torch_fused", "paged_adamw_8bit"]),
    "loader_workers": st.integers(0, 8),
    "pin_memory": st.booleans(),
    "low_cpu_mem_usage": st.booleans(),
    "auto_find_batch_size": st.booleans(),
    "allocator": st.sampled_from(Allocator),
}
AXOLOTL_FILE = """\
base_model: m  # the model
datasets:
  - path: d.jsonl
    type: alpaca
adapter: lora
lora_r: 8
micro_batch_size: 2
eval_batch_size: 3
dataloader_num_workers: 1
dataloader_pin_memory: false
low_cpu_mem_usage: false
"""
SWIFT = {
    **without("low_cpu_mem_usage"),
    "precision": st.sampled_from(MIXED),
    "quantization": st.sampled_from(ON_THE_FLY),
    "frozen": st.frozensets(st.sampled_from(Part)),
    "image_pixels": SMALL,
}
SWIFT_FILE = """\
model: Qwen/Qwen2.5-VL-7B-Instruct  # vision
dataset: d.jsonl
torch_dtype: bfloat16
max_pixels: 1003520
max_length: 2048
dataset_num_proc: 4
"""
TUNE = {
    "micro_batch": SMALL,
    "accumulation": SMALL,
    "sequence_length": SMALL,
    "checkpointing": st.booleans(),
    "precision": st.sampled_from((Precision.FP32, Precision.BF16_TRUE)),
    "quantization": st.sampled_from((Quantization.NONE, Quantization.NF4_DOUBLE)),
    "lora_rank": SMALL,
    "optimizer": st.sampled_from(["torch.optim.AdamW", "bitsandbytes.optim.PagedAdamW8bit"]),
    "loss_kernel": st.sampled_from(LossKernel),
    "offload": st.sampled_from([frozenset(), frozenset({Offload.ACTIVATIONS}), frozenset(Offload)]),
    "allocator": st.sampled_from(Allocator),
}
TUNE_FILE = """\
model:
  _component_: torchtune.models.llama3.lora_llama3_8b  # the builder
  lora_rank: 8
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: 2048
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  lr: 3e-4
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
dtype: bf16
"""
TUNE_WORDS = "batch_size=4 tokenizer.max_seq_len=9 dtype=fp32 model.lora_rank=2"
CASES = {
    "trl-file": Case(Trl(), "trl sft --config train.yaml", TRL_FILE, TRL),
    "trl-words": Case(Trl(), f"trl sft --config train.yaml {TRL_WORDS}", TRL_FILE, TRL),
    "trl-named": Case(
        Trl(), "trl sft --config train.yaml --accelerate_config zero1", TRL_FILE, TRL
    ),
    "trl-torchrun": Case(Trl(), "torchrun -m trl.scripts.sft --config train.yaml", TRL_FILE, TRL),
    "qwen": Case(Qwen(), f"torchrun finetune.py {QWEN_FLAGS}", None, QWEN),
    "peft-loftq": Case(PeftLoftq(), f"python train.py {LOFTQ_FLAGS}", None, LOFTQ),
    "axolotl-file": Case(Axolotl(), "axolotl train train.yaml", AXOLOTL_FILE, AXOLOTL),
    "axolotl-batch": Case(
        Axolotl(),
        "axolotl train train.yaml --launcher torchrun --sequence-len 9 -- --nproc_per_node 2",
        AXOLOTL_FILE + "batch_size: 8\n",
        AXOLOTL,
    ),
    "swift-file": Case(MsSwift(), "swift sft train.yaml", SWIFT_FILE, SWIFT),
    "swift-words": Case(
        MsSwift(),
        "swift sft train.yaml --max_length 9 --quant_method bnb --quant_bits 8",
        SWIFT_FILE,
        SWIFT,
    ),
    "torchtune-file": Case(
        Torchtune(),
        "tune run lora_finetune_single_device --config train.yaml",
        TUNE_FILE,
        TUNE,
        zero=False,
    ),
    "torchtune-words": Case(
        Torchtune(),
        f"tune run --nproc_per_node 2 lora_finetune_distributed --config train.yaml {TUNE_WORDS}",
        TUNE_FILE,
        TUNE,
        zero=False,
    ),
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
@settings(deadline=None, max_examples=15)  # a busy machine is no failure
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
    plan = case.adapter.normalize(job, plan)  # as the ladder does
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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_job_put_aside_is_the_same_job_that_writes_elsewhere(
    bench: Callable[..., Any], folder: str, case: Case
) -> None:
    table, output = bench(case.adapter), f"{folder}/output"
    job = table.job(case.argv, case.text, case.name)
    command = case.adapter.write(case.adapter.as_trial(job, output), job.asked, folder)
    again = table.reread(job, command)
    assert again.asked == job.asked
    assert (again.world, again.device) == (job.world, job.device)
    assert again.output_dir == output
    assert case.adapter.checkpoint_layout(again) is None or case.adapter.name in (
        "litgpt",
        "torchtune",
    )
