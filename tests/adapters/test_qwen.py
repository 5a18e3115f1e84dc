from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.qwen import Qwen
from oomguard.errors import ConfigError
from oomguard.job.checkpoint import Checkpoint, Continuation, Mode
from oomguard.job.plan import Plan, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import Job, World

FLAGS = "--lazy_preprocess True --data_path d.json --use_lora"
ZERO2 = """\
{
  "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
  "zero_optimization": {
    "stage": 2,
    "offload_optimizer": {"device": "none", "pin_memory": true},
    "reduce_bucket_size": 2e8
  },
  "train_micro_batch_size_per_gpu": "auto"
}
"""
#: As the repository's scripts are written, in words of our own.
SCRIPT = """\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS=$(python -c 'import torch; print(torch.cuda.device_count())')
NNODES=${NNODES:-1}
MODEL="some/base" # the user's own
DATA="nowhere"
DS_CONFIG_PATH="finetune/ds_config_zero2.json"

function usage() {
    echo 'torchrun nothing'
}
while [[ "$1" != "" ]]; do
    case $1 in
        -m ) shift; MODEL=$1 ;;
    esac
    shift
done
ARGS="
    --nproc_per_node $GPUS \\
    --nnodes $NNODES
"
torchrun $ARGS finetune.py \\
    --model_name_or_path $MODEL \\
    --data_path $DATA \\
    --bf16 True \\
    --per_device_train_batch_size 3 \\
    --model_max_length 77 \\
    --lazy_preprocess True \\
    --use_lora \\
    --deepspeed ${DS_CONFIG_PATH}
"""


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., Job]:
    def reader(argv: str = f"torchrun finetune.py {FLAGS}", **more: Any) -> Job:
        return bench(Qwen(), **more).job(argv)

    return reader


def test_the_defaults_are_the_scripts(read: Callable[..., Job]) -> None:
    asked = read().asked
    assert (asked.micro_batch, asked.accumulation, asked.sequence_length) == (8, 1, 8192)
    assert (asked.tuning, asked.lora_rank) == (Tuning.LORA, 64)
    assert (asked.precision, asked.quantization) == (Precision.FP32, Quantization.NONE)
    assert (asked.checkpointing, asked.low_cpu_mem_usage, asked.loss_kernel) == (False, None, None)


def test_gptq_is_read_as_what_the_checkpoint_holds(read: Callable[..., Job]) -> None:
    asked = read(f"torchrun finetune.py {FLAGS} --q_lora --fp16 True").asked
    assert asked.quantization is Quantization.PREQUANTIZED
    assert asked.precision is Precision.FP16_MIXED


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        ("ds", (1, 16, Tuning.FULL, Quantization.NONE)),
        ("lora_ds", (2, 8, Tuning.LORA, Quantization.NONE)),
        ("qlora_ds", (2, 8, Tuning.LORA, Quantization.PREQUANTIZED)),
        ("lora_single_gpu", (2, 8, Tuning.LORA, Quantization.NONE)),
        ("qlora_single_gpu", (2, 8, Tuning.LORA, Quantization.PREQUANTIZED)),
    ],
)
def test_a_shell_script_becomes_the_line_that_it_starts(
    read: Callable[..., Job], kind: str, plan: tuple[object, ...]
) -> None:
    job = read(f"bash finetune/finetune_{kind}.sh -m a/b -d d.json", gpus=2)
    asked: Plan = job.asked
    assert (asked.micro_batch, asked.accumulation, asked.tuning, asked.quantization) == plan
    assert (asked.sequence_length, asked.checkpointing) == (512, True)
    single = kind.endswith("single_gpu")
    assert job.argv[0] == ("python" if single else "torchrun")
    assert job.world == World(per_node=1 if single else 2)
    assert job.argv[job.argv.index("--model_name_or_path") + 1] == "a/b"
    assert job.env["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert ("CUDA_VISIBLE_DEVICES" in job.env) is single
    assert Qwen().write(job, asked, "/out").argv == job.argv


def test_a_shell_script_is_followed_as_it_stands(bench: Callable[..., Any]) -> None:
    path = "/home/me/project/finetune/finetune_lora_ds.sh"
    zero = "/home/me/project/mine.json"
    table = bench(Qwen(), gpus=3, env={"NNODES": "2"}, files={path: SCRIPT, zero: ZERO2})
    argv = "bash finetune/finetune_lora_ds.sh -d d.json --deepspeed mine.json"
    script = "/home/me/project/finetune.py"
    assert table.adapter.referenced_files(table.request(argv)) == (path, zero, script)
    job = table.job(argv)
    expected = (
        "torchrun --nproc_per_node 3 --nnodes 2 finetune.py --model_name_or_path some/base "
        "--data_path d.json --bf16 True --per_device_train_batch_size 3 --model_max_length 77 "
        "--lazy_preprocess True --use_lora --deepspeed mine.json"
    )
    assert job.argv == tuple(expected.split())
    assert (job.asked.sharding, job.world.size) == (Sharding.ZERO2, 6)


def test_a_script_that_starts_nothing_is_named(bench: Callable[..., Any]) -> None:
    path = "/home/me/project/finetune_ds.sh"
    table = bench(Qwen(), files={path: "echo\n"})
    with pytest.raises(ConfigError, match="no line that starts") as caught:
        table.job("bash finetune_ds.sh")
    assert str(caught.value.where) == path


@pytest.mark.parametrize("words", ["--deepspeed x.json", "-m", "-x y"])
def test_an_option_that_the_script_lacks_is_named(read: Callable[..., Job], words: str) -> None:
    with pytest.raises(ConfigError, match=r"finetune_ds.sh takes -m, --model, -d, --data"):
        read(f"bash finetune_ds.sh {words}")


def test_a_new_optimizer_takes_the_block_of_the_deepspeed_file_away(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(Qwen(), gpus=2, files={"/home/me/project/z.json": ZERO2})
    flags = f"{FLAGS} --deepspeed z.json --optim paged_adamw_8bit"
    job = table.job(f"torchrun --nproc_per_node 2 finetune.py {flags}")
    assert job.asked.optimizer == "adamw_torch"  # the file's own wins
    plan = replace(job.asked, optimizer="paged_adamw_8bit")
    command = table.adapter.write(job, plan, folder)
    kept = [line for line in ZERO2.splitlines() if 'optimizer":' not in line[:14]]
    assert command.files[0].text.splitlines() == kept
    assert table.reread(job, command).asked == plan


@pytest.mark.parametrize(
    ("flags", "change", "message"),
    [
        ("", {"quantization": Quantization.NF4_DOUBLE}, "quantizes nothing by itself"),
        ("", {"sharding": Sharding.ZERO3}, "ZeRO3 is incompatible with LoRA"),
        ("--q_lora", {"sharding": Sharding.ZERO3}, "not compatible with passing a device_map"),
        ("--q_lora --fp16", {"precision": Precision.BF16_MIXED}, "--fp16"),
        ("--q_lora", {"tuning": Tuning.FULL}, "without --use_lora is ignored"),
        (
            "--model_name_or_path a-Chat --auto_find_batch_size",
            {"sharding": Sharding.ZERO3},
            "`auto_find_batch_size` isn't",
        ),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    read: Callable[..., Job], flags: str, change: dict[str, Any], message: str
) -> None:
    job = read(f"torchrun finetune.py {FLAGS} {flags}")
    assert Qwen().refusal(job, job.asked) is None
    assert message in (Qwen().refusal(job, replace(job.asked, **change)) or "")


def test_a_chat_model_goes_with_zero3(read: Callable[..., Job]) -> None:
    job = read(f"torchrun finetune.py {FLAGS} --model_name_or_path Qwen/Qwen-7B-Chat")
    assert Qwen().refusal(job, replace(job.asked, sharding=Sharding.ZERO3)) is None


def test_a_checkpoint_is_handed_to_it_by_the_reporter(read: Callable[..., Job]) -> None:
    job = read()
    assert Qwen().checkpoint_layout(job) is not None
    assert Qwen().resume_mode(job, job.asked, job.asked) == (Mode.FULL, "")
    begins = Continuation(mode=Mode.FULL, checkpoint=Checkpoint(path="/out/checkpoint-4", step=4))
    written = Qwen().write(job, job.asked, "/attempt", begins)
    assert written.env["OOMGUARD_RESUME"] == "/out/checkpoint-4"
    assert "OOMGUARD_RESUME" not in Qwen().write(job, job.asked, "/attempt").env


def test_nothing_survives_a_relaunch_without_the_reporter(read: Callable[..., Job]) -> None:
    job = replace(read(), inside=False)
    mode, why = Qwen().resume_mode(job, job.asked, job.asked)
    assert (mode, Qwen().checkpoint_layout(job)) == (Mode.RESTART, None)
    assert "ignores it" in why
