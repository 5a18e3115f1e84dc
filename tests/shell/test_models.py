"""`oomguard models`, and the names of models that other repositories' examples use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomguard.catalogue.shipped import carried, transformers_config
from oomguard.cli.main import main

NAMES = json.loads((Path(__file__).parents[2] / "benchmarks/models/names.json").read_text())


@pytest.fixture
def models(capsys):
    def run(*search: str) -> list[dict]:
        assert main(["models", "--json", *search]) == 0
        return json.loads(capsys.readouterr().out)["models"]

    return run


def test_all_models_are_listed(models):
    rows = models()
    assert len(rows) == len(carried())
    assert set(rows[0]) == {"name", "model_type", "parameters", "source"}


def test_a_search_finds_all_its_words_in_names_and_types(models):
    assert {row["model_type"] for row in models("gemma2")} == {"gemma2"}
    assert "Qwen/Qwen2.5-VL-7B" in {row["name"] for row in models("VL", "qwen2.5")}


def test_the_name_of_a_copy_prints_what_it_is_taken_for(capsys):
    assert main(["models", "unsloth/llama-3-8b-bnb-4bit"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "unsloth/llama-3-8b-bnb-4bit is taken for:"
    assert second.split() == ["meta-llama/Meta-Llama-3-8B", "llama", "8.03", "B"]


def test_what_is_not_carried_is_refused_with_the_way_out(capsys):
    assert main(["models", "me/unheard-of"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_plan_notes_what_a_name_was_taken_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    config = "model_name_or_path: me/Llama-3.1-8B-sft\nstage: sft\ntemplate: llama3\n"
    (tmp_path / "train.yaml").write_text(config + "finetuning_type: lora\noutput_dir: out\n")
    assert main(["plan", "--gpu", "a100-80", "--json", str(tmp_path / "train.yaml")]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    name = "me/Llama-3.1-8B-sft is not in the catalogue: taken for meta-llama/Llama-3.1-8B"
    assert name in notes


def test_the_committed_list_of_names_is_that_of_the_catalogue():
    taken = {name: transformers_config(name) for name in NAMES["taken_for"]}
    assert {name: found and found.name for name, found in taken.items()} == NAMES["taken_for"], (
        "run: python benchmarks/models/run.py"
    )


def test_a_plan_names_the_layers_that_it_does_not_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    config = "model_name_or_path: Qwen/Qwen3.5-0.8B\nstage: sft\ntemplate: qwen3_5\n"
    (tmp_path / "train.yaml").write_text(config + "finetuning_type: lora\noutput_dir: out\n")
    assert main(["plan", "--gpu", "h200", "--json", str(tmp_path / "train.yaml")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["asked"]["fits"] == "unsure"
    assert "linear attention" in next(
        one["effect"] for one in plan["unmodelled"] if one["key"] == "model"
    )
