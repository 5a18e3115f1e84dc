"""`oomguard plan` with a real trace, in the frameworks' own environments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from environments import environment

from oomguard.catalogue.litgpt_configs import named
from oomguard.cli.main import main
from oomguard.units import GIB

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.frameworks


@pytest.fixture
def plan(capsys, monkeypatch, tmp_path):
    pythons = {name: environment(name) for name in ("litgpt", "llamafactory")}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # predictions, but not the environments

    def run(framework: str, *words: object) -> dict:
        python = pythons[framework]
        assert main(["plan", *map(str, words), "--python", str(python), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_llama_3_with_litgpt_on_a_24_gb_card(plan):
    recipe = RECIPES / "litgpt" / "train.yaml"
    quantized = plan("litgpt", recipe, "--gpu-memory", "24GiB", "--ladder", "enable_qlora")
    assert quantized["asked"]["fits"] == "no"
    assert quantized["asked"]["estimate"]["method"].startswith("trace")
    in_four_bit = next(rung for rung in quantized["rungs"] if rung["plan"])
    assert in_four_bit["fits"] != "no"
    assert in_four_bit["estimate"]["expected_bytes"] < 24 * GIB
    # LitGPT gives a quantized run a second embedding and a gradient of it, which nobody clears
    embedding_bytes = 128256 * 4096 * 2
    terms = in_four_bit["estimate"]["terms"]
    assert terms["trained_embeddings"] == pytest.approx(2 * embedding_bytes, rel=0.01)

    cut = plan("litgpt", recipe, "--gpu-memory", "24GiB", "--ladder", "cut_cutoff_len")
    fitting = {r["plan"]["sequence_length"]: r["fits"] for r in cut["rungs"] if r["plan"]}
    assert fitting[512] == "yes"


def test_trace_and_arithmetic_agree_on_a_lora_job(plan, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(
        "model_name_or_path: meta-llama/Meta-Llama-3-8B\nstage: sft\nfinetuning_type: lora\n"
        "lora_target: all\ndataset: none\ntemplate: llama3\ncutoff_len: 2048\nbf16: true\n"
        "per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\noutput_dir: out\n"
    )
    words = (file, "--gpu", "3090", "--ladder", "halve_micro_batch")
    traced = plan("llamafactory", *words)["asked"]["estimate"]
    assert traced["method"].startswith("trace")
    # 14.96 GiB of weights, three fp32 copies of 2048 x 128256 logits, 32 inputs of layers
    assert traced["allocated_bytes"] / GIB == pytest.approx(18.7, rel=0.03)
    again = plan("llamafactory", *words)
    assert again["asked"]["estimate"] == traced


def test_litgpt_itself_is_asked_for_its_named_configs():
    ask = named(str(environment("litgpt")))
    found = ask("checkpoints/EleutherAI/pythia-14m")
    assert found is not None
    assert (found["n_layer"], found["n_embd"]) == (6, 128)
    assert ask("checkpoints/nobody/nothing") is None
