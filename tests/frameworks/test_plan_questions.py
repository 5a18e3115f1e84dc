"""What `plan` answers from one scaled trace, against traces of the configs that it names."""

from __future__ import annotations

import json
import re

import pytest
from environments import environment

from oomguard.cli.main import main

TRAIN = """
model_name_or_path: meta-llama/Meta-Llama-3-8B
stage: sft
finetuning_type: lora
lora_target: all
dataset: alpaca
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
bf16: true
output_dir: out
"""


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    python = ["--python", str(environment("hf"))]  # before its cache folder is another
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(text: str, *words: str) -> dict:
        file = tmp_path / "train.yaml"
        file.write_text(text)
        assert main(["plan", str(file), *python, "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("gpu", "field", "key"),
    [
        ("h100", "micro_batch", "per_device_train_batch_size"),
        ("a100-40", "sequence_length", "cutoff_len"),
    ],
)
def test_a_trace_confirms_the_values_that_scaling_one_trace_named(plan, gpu, field, key):
    found = plan(TRAIN, "--gpu", gpu, "--max", field)
    assert found["requested"]["method"].startswith("trace")
    certain, possible = found["certain"]["value"], found["possible"]["value"]
    assert found["requested"]["value"] < certain < possible < found["searched_up_to"]
    fits = {}
    for value in (certain, possible + 1):
        text = re.sub(rf"(?m)^{key}: .*$", f"{key}: {value}", TRAIN)
        asked = plan(text, "--gpu", gpu)["asked"]
        assert asked["estimate"]["method"].startswith("trace")
        fits[value] = asked["fits"]
    assert fits[certain] == "yes"
    assert fits[possible + 1] != "yes"


def test_a_table_of_gpus_is_that_of_traces_of_the_requested_config(plan):
    document = plan(TRAIN, "--gpu", "all", "--gpus", "1")
    rows = {row["card"]: row for row in document["cards"]}
    for card in ("RTX 3090", "A100 40GB", "A100 80GB"):
        alone = plan(TRAIN, "--gpu", card)
        assert rows[card]["asked_fits"] == alone["asked"]["fits"]
        if alone["asked"]["fits"] == "yes":
            assert rows[card]["estimate"] == alone["asked"]["estimate"]
            assert rows[card]["method"].startswith("trace")
    assert document["answer_seconds"] < document["seconds"]
