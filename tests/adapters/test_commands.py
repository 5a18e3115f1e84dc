"""A flag in a file's own `command:` beats the file, in every framework, and is what is edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.registry import adapter_named

TRAINER = "model_name_or_path: m\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 4\n"
LITGPT = "checkpoint_dir: c\ntrain: {global_batch_size: 8, micro_batch_size: 2}\n"
AXOLOTL = "base_model: m\ndatasets: []\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n"
SWIFT = (
    "model: m\ndataset: d\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 4\n"
    "max_length: 64\n"
)
TORCHTUNE = "model: {_component_: a.lora_b}\nbatch_size: 2\ngradient_accumulation_steps: 4\n"


COMMANDS = (
    ("hf_trainer", TRAINER, "python train.py --per_device_train_batch_size 4"),
    ("hf_trainer", TRAINER, "torchrun main.py train --per_device_train_batch_size=4"),
    ("qwen", TRAINER, "python finetune.py --q_lora --per_device_train_batch_size 4"),
    ("peft_loftq", TRAINER, "python train.py --per_device_train_batch_size 4"),
    ("trl", TRAINER, "trl sft --per_device_train_batch_size 4"),
    ("llamafactory", TRAINER, "lmf train per_device_train_batch_size=4"),
    (
        "llamafactory",
        TRAINER,
        "torchrun --nnodes 1 src/train.py per_device_train_batch_size=4",
    ),
    ("litgpt", LITGPT, "litgpt finetune_lora c --train.micro_batch_size 4"),
    ("litgpt", LITGPT, "python -m litgpt finetune_lora --train.micro_batch_size=4"),
    ("axolotl", AXOLOTL, "axolotl train --micro_batch_size 4"),
    ("axolotl", AXOLOTL, "axolotl train --micro_batch_size 4 -- --num_machines 1"),
    ("ms_swift", SWIFT, "swift sft --per_device_train_batch_size 4"),
    ("torchtune", TORCHTUNE, "tune run lora_finetune_single_device batch_size=4"),
)


@pytest.mark.parametrize(("name", "text", "command"), COMMANDS)
def test_a_flag_of_the_files_own_command_beats_the_file(
    bench: Callable[..., Any], folder: str, name: str, text: str, command: str
) -> None:
    table = bench(adapter_named(name))
    source = table.request("x", text).source
    argv = table.adapter.command_for(source, {}, tuple(command.split()))
    job = table.job(" ".join(argv), text)
    assert job.asked.micro_batch == 4
    plan = replace(job.asked, micro_batch=1, accumulation=job.asked.rank_batch)
    written = table.adapter.write(job, plan, folder)
    again = table.reread(job, written)
    assert (again.asked.micro_batch, again.asked.rank_batch) == (1, job.asked.rank_batch)


def test_the_words_of_a_script_keep_their_places(bench: Callable[..., Any]) -> None:
    """A subcommand stays first; the flags of the file come before those of the command."""
    table = bench(adapter_named("hf_trainer"))
    job = table.job("python main.py train --seed 1", "output_dir: o\nseed: 2\n")
    assert " ".join(job.argv) == "python main.py train --output_dir o --seed 2 --seed 1"
    assert table.adapter.write(job, job.asked, "/f").argv == job.argv
