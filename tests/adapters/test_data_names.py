"""The data sets that a job names are found in each framework's spelling, and so is its seed."""

from __future__ import annotations

import pytest

from adapters.conftest import CWD, Bench
from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.torchtune import Torchtune
from oomguard.adapters.trl import Trl

AXOLOTL = """\
base_model: m
datasets:
  - path: org/set
    type: alpaca
  - path: json
    data_files: [a.jsonl, /abs/b.jsonl]
    type: alpaca
micro_batch_size: 1
gradient_accumulation_steps: 1
seed: 3
"""
LLAMAFACTORY = "stage: sft\ndo_train: true\ndataset: one,two\ndataset_dir: d\nseed: 3\n"
LITGPT = "data:\n  class_path: litgpt.data.JSON\n  init_args:\n    json_path: a.json\nseed: 3\n"
TRL = "datasets:\n  - path: org/set\n  - path: json\n    data_files: a.jsonl\nseed: 3\n"


@pytest.mark.parametrize(
    ("adapter", "argv", "text", "names"),
    [
        (Axolotl(), "axolotl train train.yaml", AXOLOTL, ["org/set", "a.jsonl", "/abs/b.jsonl"]),
        (LlamaFactory(), "llamafactory-cli train train.yaml", LLAMAFACTORY, ["d/one", "d/two"]),
        (LitGPT(), "litgpt finetune_lora m --config train.yaml", LITGPT, ["a.json"]),
        (
            MsSwift(),
            "swift sft --model m --dataset a.jsonl#500 HF::org/set b.jsonl --seed 3",
            None,
            ["a.jsonl", "org/set", "b.jsonl"],
        ),
        (Trl(), "trl sft --config train.yaml", TRL, ["org/set", "a.jsonl"]),
        (Trl(), "trl sft --model_name_or_path m --dataset_name x --seed 3", None, ["x"]),
        (HFTrainer(), "python t.py --train_file a.json --seed 3", None, ["a.json"]),
    ],
)
def test_the_data_and_the_seed_of_a_job(adapter, argv, text, names):
    job = Bench(adapter).job(argv, text)
    assert adapter.data(job) == tuple(n if n.startswith("/") else f"{CWD}/{n}" for n in names)
    assert adapter.seed(job) == 3


def test_a_job_that_states_neither_has_neither():
    adapter = Torchtune()
    job = Bench(adapter).job(
        "tune run lora_finetune_single_device --config train.yaml", "seed: null\n"
    )
    assert (adapter.data(job), adapter.seed(job)) == ((), None)
