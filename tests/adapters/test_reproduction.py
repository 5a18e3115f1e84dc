"""What reproduces a run holds every file that its config refers to, under names that move."""

from __future__ import annotations

from dataclasses import replace

import yaml

from adapters.conftest import CWD, Bench
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.job.plan import Sharding
from oomguard.run.reproduction import reproduction

FINAL = f"{CWD}/oomguard-runs/one/final"
TEXT = f"""\
stage: sft
do_train: true
model_name_or_path: org/model
dataset: mine
dataset_dir: {CWD}/data
template: default
bf16: true
output_dir: /elsewhere/out
"""


def test_a_config_that_refers_to_a_file_of_its_own_is_moved_with_it():
    adapter = LlamaFactory()
    job = Bench(adapter, gpus=2).job("llamafactory-cli train train.yaml", TEXT)
    plan = adapter.normalize(job, replace(job.asked, sharding=Sharding.ZERO3))
    found = reproduction(adapter.write(job, plan, FINAL), job, FINAL)
    assert found.argv == ("llamafactory-cli", "train", "{oomguard:final}/train.yaml")
    there = found.at(job="/copy", final="/copy/f", python="/py")
    files = {file.path: file.text for file in there.files}
    config = yaml.safe_load(files["/copy/f/train.yaml"])
    assert config["dataset_dir"] == "/copy/data"
    assert config["output_dir"] == "/elsewhere/out", "nobody knows where that is elsewhere"
    assert '"stage": 3' in files[config["deepspeed"]]
