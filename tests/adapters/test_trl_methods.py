"""What TRL's preference commands compute in a step, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.trl import Trl
from oomguard.job.memory_settings import Head, MemorySettings
from oomguard.job.plan import Overlong, Plan, Tuning
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import TrainingMethod
from oomguard.ladder.load import load_strategies
from oomguard.strategy import SAME_MATH, SAME_RECIPE

TEXT = "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: data\noutput_dir: out\n"


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., tuple[Job, MemorySettings]]:
    def reader(command: str, lines: str = "") -> tuple[Job, MemorySettings]:
        table = bench(Trl())
        job = table.job(f"trl {command} --config train.yaml", TEXT + lines)
        return job, table.adapter.memory_settings(job)

    return reader


@pytest.mark.parametrize(
    ("lines", "compares", "copy"),
    [
        ("", True, True),
        ("use_peft: true\n", True, False),
        ("precompute_ref_log_probs: true\n", False, False),
    ],
)
def test_dpo_has_two_rows_a_pair_and_a_reference(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, compares: bool, copy: bool
) -> None:
    job, settings = read("dpo", lines)
    assert settings.objective is not None
    assert (settings.objective.method, settings.rows) == (TrainingMethod.DPO, 2)
    assert settings.objective.compares(job.asked) is compares
    assert settings.objective.holds_copy(job.asked) is copy


def test_an_adapter_in_place_of_full_tuning_needs_no_copy(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, settings = read("dpo")
    assert settings.objective is not None
    assert not settings.objective.holds_copy(replace(job.asked, tuning=Tuning.LORA))


@pytest.mark.parametrize(
    ("lines", "compares", "copy"),
    [
        ("", True, True),
        ("use_peft: true\n", True, False),
        ("precompute_ref_log_probs: true\n", False, False),
    ],
)
def test_kto_has_a_row_for_each_sample_and_a_reference(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, compares: bool, copy: bool
) -> None:
    job, settings = read("kto", lines)
    assert settings.objective is not None
    assert (settings.objective.method, settings.rows) == (TrainingMethod.KTO, 1)
    assert settings.objective.compares(job.asked) is compares
    assert settings.objective.holds_copy(job.asked) is copy


def test_halving_ktos_micro_batch_costs_more_than_the_same_math(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    halve = {strategy.id: strategy for strategy in load_strategies()}["halve_micro_batch"]
    costs = {"kto": SAME_RECIPE, "apo_zero_unpaired": SAME_MATH}
    for loss, cost in costs.items():
        assert halve.fidelity_for(read("kto", f"loss_type: {loss}\n")[0]) is cost
    assert halve.fidelity_for(read("dpo")[0]) is SAME_MATH


def test_kto_refuses_a_micro_batch_of_one(read: Callable[..., tuple[Job, MemorySettings]]) -> None:
    job, _ = read("kto")
    alone = replace(job.asked, micro_batch=1, accumulation=8)
    assert "must be > 1" in (Trl().refusal(job, alone) or "")
    assert Trl().refusal(job, replace(job.asked, micro_batch=2, accumulation=4)) is None
    unpaired, _ = read("kto", "loss_type: apo_zero_unpaired\n")
    assert Trl().refusal(unpaired, alone) is None


def test_reward_scores_tokens_and_drops_pairs_that_are_too_long(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, settings = read("reward", "use_peft: true\n")
    assert settings.objective is not None
    assert (settings.objective.head, settings.rows) == (Head.SCORE, 2)
    assert (job.asked.overlong, job.asked.loss_kernel) == (Overlong.DROPPED, None)
    assert job.asked.precompute_reference is None


@pytest.mark.parametrize(("lines", "dropout"), [("", 0.0), ("disable_dropout: false\n", 0.05)])
def test_trl_turns_an_adapters_dropout_off(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, dropout: float
) -> None:
    _, settings = read("dpo", f"use_peft: true\n{lines}")
    assert settings.lora is not None
    assert settings.lora.dropout == dropout


def test_a_reference_that_follows_the_policy_cannot_be_precomputed(
    bench: Callable[..., Any],
) -> None:
    table = bench(Trl())
    job = table.job("trl dpo --config train.yaml", TEXT + "sync_ref_model: true\n")
    plan: Plan = replace(job.asked, precompute_reference=True)
    assert "sync_ref_model=True" in (table.adapter.refusal(job, plan) or "")
    assert table.adapter.refusal(job, job.asked) is None


def test_precomputing_is_written_as_trls_own_key(bench: Callable[..., Any], folder: str) -> None:
    table = bench(Trl())
    job = table.job("trl dpo --config train.yaml", TEXT)
    plan = replace(job.asked, precompute_reference=True)
    command = table.adapter.write(job, plan, folder)
    assert "precompute_ref_log_probs: true\n" in command.files[0].text
    assert table.reread(job, command).asked == plan
