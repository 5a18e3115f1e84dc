"""LoRA on the experts of a layer: whether it reaches them depends on versions of packages."""

from __future__ import annotations

import json

import pytest

from oomguard.catalogue.lookup import find_model
from oomguard.cli.main import main
from oomguard.estimate.counts import targeted
from oomguard.job.memory_settings import ALL_LINEAR, Family, Lora, MemorySettings
from oomguard.predict.left_out import in_version

MOE = "Qwen/Qwen3-30B-A3B"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture
def plan(capsys, monkeypatch):
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_: None)

    def run(flags: str) -> dict:
        script = (
            "python train.py --bf16 --per_device_train_batch_size 8 --lora_r 8 --max_length 512 "
            f"--output_dir o {flags}"
        )
        assert main(["plan", "--gpu", "a100-80", "--json", "--", *script.split()]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("versions", "reached"),
    [
        ({}, True),
        ({"transformers": "4.57.1", "peft": "0.18.1"}, True),
        ({"transformers": "5.6.0", "peft": "0.18.1"}, False),
        ({"transformers": "5.23.0", "peft": "0.21.2"}, True),
    ],
)
@pytest.mark.parametrize("targets", [(ALL_LINEAR,), (*ATTENTION, "gate_proj", "up_proj")])
def test_names_reach_experts_that_are_layers_or_that_peft_converts(
    tmp_path, versions, reached, targets
):
    model = find_model(MOE, Family.HF, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"})
    settings = MemorySettings(lora=Lora(rank=8, alpha=16, targets=targets))
    lora = in_version(settings, Family.HF, versions).lora
    adapted = targeted(model.architecture, lora)
    assert any(linear.count > 1 for linear in adapted) is reached
    assert {linear.names[0] for linear in adapted if linear.count == 1} >= set(ATTENTION)


def test_without_versions_a_plan_with_adapted_experts_is_unsure(plan):
    document = plan(f"--model_name_or_path {MOE} --lora_target_modules all-linear")
    (found,) = document["unmodelled"]
    assert (found["key"], found["direction"], document["asked"]["fits"]) == (
        "model", "less", "unsure",
    )  # fmt: skip
    assert "experts" in found["effect"]


@pytest.mark.parametrize(
    "flags",
    [
        f"--model_name_or_path {MOE} --lora_target_modules q_proj v_proj",
        "--model_name_or_path Qwen/Qwen3-8B --lora_target_modules all-linear",
    ],
)
def test_without_adapted_experts_nothing_is_left_out(plan, flags):
    assert plan(flags)["unmodelled"] == []
