"""What LLaMA-Factory's stages compute in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.errors import ConfigError
from oomguard.job.checkpoint import Mode
from oomguard.job.memory_settings import Head, MemorySettings, Objective
from oomguard.job.plan import Quantization
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, TrainingMethod
from oomguard.ladder.load import load_strategies
from oomguard.strategy import SAME_MATH, SAME_RECIPE

TEXT = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
do_train: true
dataset: mine
template: qwen
output_dir: out
"""
LORA, FULL = "finetuning_type: lora\n", "finetuning_type: full\n"


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., tuple[Job, MemorySettings]]:
    def reader(stage: str, lines: str = LORA) -> tuple[Job, MemorySettings]:
        table = bench(LlamaFactory())
        text = f"{TEXT}stage: {stage}\n{lines}"
        job = table.job("llamafactory-cli train train.yaml", text)
        return job, table.adapter.memory_settings(job)

    return reader


def objective(settings: MemorySettings) -> Objective:
    assert settings.objective is not None
    return settings.objective


@pytest.mark.parametrize(
    ("lines", "compares", "copy"),
    [
        (LORA, True, False),
        (FULL, True, True),
        ("finetuning_type: freeze\n", True, True),
        (f"{LORA}ref_model: Qwen/Qwen2.5-0.5B\n", True, True),
        (f"{LORA}pref_loss: ipo\n", True, False),
        (f"{FULL}pref_loss: orpo\n", False, False),
        (f"{FULL}pref_loss: simpo\nref_model: Qwen/Qwen2.5-0.5B\n", False, False),
        (f"{LORA}adapter_name_or_path: sft\ncreate_new_adapter: true\n", True, False),
    ],
)
def test_dpo_has_two_rows_a_pair_and_its_loss_decides_over_the_reference(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, compares: bool, copy: bool
) -> None:
    job, settings = read("dpo", lines)
    found = objective(settings)
    assert (settings.rows, found.logit_bytes) == (2, (8, 12))
    assert found.reference_logit_bytes == (12 if compares else 0)
    assert (found.compares(job.asked), found.holds_copy(job.asked)) == (compares, copy)


@pytest.mark.parametrize(
    ("loss", "method"),
    [
        ("sigmoid", TrainingMethod.DPO),
        ("hinge", TrainingMethod.DPO),
        ("orpo", TrainingMethod.ORPO),
        ("simpo", TrainingMethod.SIMPO),
    ],
)
def test_the_loss_names_the_method(
    read: Callable[..., tuple[Job, MemorySettings]], loss: str, method: TrainingMethod
) -> None:
    job, settings = read("dpo", f"{LORA}pref_loss: {loss}\n")
    assert objective(settings).method is LlamaFactory().training_method(job) is method


@pytest.mark.parametrize(
    ("bits", "stored"),
    [
        ("", Quantization.NONE),
        ("ref_model_quantization_bit: 4\n", Quantization.NF4_DOUBLE),
        ("ref_model_quantization_bit: 8\n", Quantization.INT8),
    ],
)
def test_the_reference_is_stored_by_its_own_bits_not_by_the_policys(
    read: Callable[..., tuple[Job, MemorySettings]], bits: str, stored: Quantization
) -> None:
    own = f"{LORA}quantization_bit: 4\nref_model: Qwen/Qwen2.5-0.5B\n{bits}"
    _, settings = read("dpo", own)
    assert objective(settings).reference_quantization is stored


def test_a_reference_of_another_name_is_counted_and_named(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, _ = read("dpo", f"{LORA}ref_model: Qwen/Qwen2.5-7B\n")
    (one,) = LlamaFactory().unmodelled(job)
    assert one.key == "ref_model"
    assert "Qwen/Qwen2.5-7B is counted as large as the trained model" in one.effect


@pytest.mark.parametrize(
    ("lines", "copy"),
    [(LORA, False), (FULL, True), (f"{LORA}ref_model: Qwen/Qwen2.5-0.5B\n", True)],
)
def test_kto_has_a_row_a_sample_and_two_forward_passes_of_the_reference(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, copy: bool
) -> None:
    job, settings = read("kto", f"{lines}pref_loss: orpo\n")  # which only stage dpo reads
    found = objective(settings)
    assert (found.method, settings.rows) == (TrainingMethod.KTO, 1)
    assert (found.logit_bytes, found.reference_logit_bytes) == ((8, 12), 16)
    assert (found.compares(job.asked), found.holds_copy(job.asked)) == (True, copy)


def test_halving_ktos_micro_batch_costs_more_than_the_same_math(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    halve = {strategy.id: strategy for strategy in load_strategies()}["halve_micro_batch"]
    assert halve.fidelity_for(read("kto")[0]) is SAME_RECIPE
    assert halve.fidelity_for(read("dpo")[0]) is SAME_MATH


def test_a_reward_model_has_a_head_for_values_beside_logits_that_are_not_trained_on(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, settings = read("rm", f"{LORA}lora_dropout: 0.1\n")
    found = objective(settings)
    assert (found.method, found.head, settings.rows) == (TrainingMethod.REWARD, Head.VALUE, 2)
    assert found.logit_bytes == (10, 0)
    assert not found.compares(job.asked)
    assert settings.lora is not None
    assert settings.lora.dropout == 0.1  # the pairwise trainer leaves it on


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        (f"{LORA}reward_model: rm\n", ["stage", "reward_model"]),
        (f"{LORA}reward_model: http://rm\nreward_model_type: api\n", ["stage"]),
        (f"{LORA}reward_model: rm\nreward_model_type: full\nref_model: m\n",
         ["stage", "reward_model", "ref_model"]),
        (f"{FULL}reward_model: rm\nreward_model_type: full\n",
         ["stage", "reward_model", "finetuning_type"]),
    ],
)  # fmt: skip
def test_ppo_names_each_model_that_is_not_counted(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, keys: list[str]
) -> None:
    job, settings = read("ppo", lines)
    found = LlamaFactory().unmodelled(job)
    assert [one.key for one in found] == keys
    assert all(one.line and one.direction is Direction.MORE for one in found)
    assert settings.objective is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LORA, "`reward_model` is necessary for PPO training."),
        (f"{FULL}reward_model: rm\n", "`reward_model_type` cannot be lora for Freeze/Full"),
        (f"{LORA}reward_model: rm\n", None),
        (f"{FULL}reward_model: rm\nreward_model_type: full\n", None),
    ],
)
def test_ppo_refuses_what_llamafactory_does(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, message: str | None
) -> None:
    job, _ = read("ppo", lines)
    said = LlamaFactory().refusal(job, job.asked)
    assert said is None if message is None else message in (said or "")


@pytest.mark.parametrize("lines", [LORA, FULL])
@pytest.mark.parametrize(
    ("stage", "mode"), [("dpo", Mode.FULL), ("rm", Mode.RESTART), ("ppo", Mode.RESTART)]
)
def test_a_stage_with_a_value_head_cannot_resume(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, stage: str, mode: Mode
) -> None:
    job, _ = read(stage, lines)
    found, reason = LlamaFactory().resume_mode(job, job.asked, job.asked)
    assert found is mode
    assert reason == ("" if mode is Mode.FULL else f"LLaMA-Factory cannot resume stage {stage}")


@pytest.mark.parametrize("stage", ["sft", "pt"])
def test_supervised_stages_have_the_models_own_loss(
    read: Callable[..., tuple[Job, MemorySettings]], stage: str
) -> None:
    assert read(stage)[1].objective is None


def test_preference_training_has_neither_dropout_nor_packing(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    lines = f"{LORA}lora_dropout: 0.1\npacking: true\n"
    for stage, dropout, packing in (("sft", 0.1, True), ("dpo", 0.0, False), ("kto", 0.0, False)):
        settings = read(stage, lines)[1]
        assert settings.lora is not None
        assert (settings.lora.dropout, settings.packing) == (dropout, packing)


@pytest.mark.parametrize(
    ("stage", "lines", "key", "value"),
    [
        ("grpo", LORA, "stage", "grpo"),
        ("DPO", LORA, "stage", "DPO"),
        ("dpo", f"{LORA}pref_loss: cpo\n", "pref_loss", "cpo"),
    ],
)
def test_what_llamafactory_does_not_have_is_refused_and_not_taken_for_something_else(
    read: Callable[..., tuple[Job, MemorySettings]], stage: str, lines: str, key: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=f"no {key} '{value}'") as refused:
        read(stage, lines)
    assert refused.value.where is not None
    assert refused.value.where.key == key
    assert "It takes " in refused.value.next_step
