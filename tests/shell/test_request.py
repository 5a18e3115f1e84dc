"""A job's files, and the files that those name, are read from the disk before the job is."""

from __future__ import annotations

import json

import pytest

from oomguard.cli.prepare import prepare
from oomguard.job.plan import Sharding

SCRIPT = """#!/bin/bash
MODEL="some/base"
DS_CONFIG_PATH="conf/mine.json"
torchrun --nproc_per_node 2 finetune.py --model_name_or_path $MODEL --lazy_preprocess True \\
    --use_lora --deepspeed ${DS_CONFIG_PATH}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "finetune").mkdir()
    return tmp_path


def asked(command):
    return prepare(None, tuple(command.split()), {}, planned_gpus=2).job.asked


def stage(number):
    return json.dumps({"zero_optimization": {"stage": number}})


def test_a_deepspeed_file_that_a_shell_script_names_is_read(here):
    (here / "finetune" / "finetune_lora_ds.sh").write_text(SCRIPT)
    (here / "conf" / "mine.json").write_text(stage(3))
    assert asked("bash finetune/finetune_lora_ds.sh").sharding is Sharding.ZERO3


def test_a_deepspeed_file_that_accelerates_config_names_is_read(here):
    (here / "acc.yaml").write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: conf/mine.json}\n"
    )
    command = "accelerate launch --config_file acc.yaml train.py --output_dir o"
    assert asked(command).sharding is None
    (here / "conf" / "mine.json").write_text(stage(1))
    assert asked(command).sharding is Sharding.ZERO1
