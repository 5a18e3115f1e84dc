"""What TRL's preference commands compute in a step, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.trl import Trl
from oomguard.job.memory_settings import Family, Head, MemorySettings
from oomguard.job.plan import Overlong, Plan, Tuning
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import TrainingMethod
from oomguard.ladder.load import load_strategies
from oomguard.predict.left_out import in_version
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


GENERATED = "reward_funcs: [accuracy_reward]\nper_device_train_batch_size: 4\n"


@pytest.mark.parametrize(
    ("lines", "compares", "copy"),
    [
        ("", False, False),
        ("beta: 0.04\n", True, True),
        ("beta: 0.04\nuse_peft: true\n", True, False),
    ],
)
def test_grpo_has_a_reference_where_beta_is_not_zero(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, compares: bool, copy: bool
) -> None:
    job, settings = read("grpo", GENERATED + lines)
    assert settings.objective is not None
    assert (settings.objective.method, settings.rows) == (TrainingMethod.GRPO, 1)
    assert settings.objective.compares(job.asked) is compares
    assert settings.objective.holds_copy(job.asked) is copy


@pytest.mark.parametrize(
    ("lines", "batch", "amid"),
    [
        ("gradient_accumulation_steps: 4\n", 16, False),
        ("gradient_accumulation_steps: 4\nsteps_per_generation: 2\n", 8, True),
        ("gradient_accumulation_steps: 2\nsteps_per_generation: 4\n", 16, False),
        ("gradient_accumulation_steps: 2\ngeneration_batch_size: 16\n", 16, False),
        ("gradient_accumulation_steps: 4\nsteps_per_generation: 2\nnum_iterations: 2\n", 8, False),
    ],
)
def test_as_many_completions_are_generated_at_once_as_trl_does(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, batch: int, amid: bool
) -> None:
    job, settings = read("grpo", GENERATED + lines)
    assert (job.asked.generation_batch, job.asked.completion_length) == (batch, 512)
    assert job.asked.sequence_length is None
    assert settings.generation is not None
    assert settings.generation.is_amid_gradients(job.asked) is amid


@pytest.mark.parametrize(
    ("lines", "written"),
    [
        ("", None),
        ("steps_per_generation: 2\n", "steps_per_generation: 4\n"),
        ("generation_batch_size: 8\n", "generation_batch_size: 8\n"),
    ],
)
def test_half_the_micro_batch_generates_as_many_at_once(
    bench: Callable[..., Any], folder: str, lines: str, written: str | None
) -> None:
    table = bench(Trl())
    text = TEXT + GENERATED + "gradient_accumulation_steps: 2\n" + lines
    job = table.job("trl grpo --config train.yaml", text)
    plan = replace(job.asked, micro_batch=2, accumulation=4)
    assert table.adapter.refusal(job, plan) is None
    command = table.adapter.write(job, plan, folder)
    assert table.reread(job, command).asked == plan
    text = command.files[0].text
    assert written in text if written else "steps_per_generation" not in text


def test_rloo_has_defaults_of_its_own(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, settings = read("rloo", GENERATED)
    assert settings.objective is not None
    assert (settings.objective.method, job.group) == (TrainingMethod.RLOO, 2)
    assert settings.objective.holds_copy(job.asked)


def test_the_completions_of_a_prompt_stay_together(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, _ = read("grpo", GENERATED + "gradient_accumulation_steps: 2\n")
    assert job.group == 8
    assert Trl().refusal(job, job.asked) is None
    assert "divisible by num_generations" in (
        Trl().refusal(job, replace(job.asked, generation_batch=12)) or ""
    )
    evaluating, _ = read(
        "grpo", f"{GENERATED}gradient_accumulation_steps: 2\neval_strategy: steps\n"
    )
    halved = replace(evaluating.asked, eval_batch=4)
    assert Trl().refusal(evaluating, evaluating.asked) is None
    assert "eval batch" in (Trl().refusal(evaluating, halved) or "")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("num_generations: 1\n", "at least 2 generations"),
        ("num_generations: 4\ngeneration_batch_size: 4\nsteps_per_generation: 1\n", "not be both"),
        ("num_generations: 3\ngeneration_batch_size: 6\n", "the global batch size"),
        ("num_generations: 4\nauto_find_batch_size: true\n", "auto_find_batch_size"),
        ("num_generations: 4\nsync_ref_model: true\nbeta: 0.0\n", "sync_ref_model"),
        ("num_generations: 4\nreward_funcs:\n", "No reward source"),
    ],
)
def test_what_grpo_refuses(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, said: str
) -> None:
    own = GENERATED.partition("\n")[2] if "reward_funcs" in lines else GENERATED
    job, _ = read("grpo", own + lines)
    assert said in (Trl().refusal(job, job.asked) or "")


@pytest.mark.parametrize(
    ("lines", "cost"),
    [("", SAME_MATH), ("loss_type: bnpo\n", SAME_RECIPE), ("entropy_coef: 0.01\n", SAME_RECIPE)],
)
def test_halving_grpos_micro_batch_costs_what_its_loss_averages_over(
    read: Callable[..., tuple[Job, MemorySettings]], lines: str, cost: object
) -> None:
    halve = {strategy.id: strategy for strategy in load_strategies()}["halve_micro_batch"]
    assert halve.fidelity_for(read("grpo", GENERATED + lines)[0]) is cost


def test_prompts_that_cannot_be_read_and_endless_completions_are_named(
    read: Callable[..., tuple[Job, MemorySettings]],
) -> None:
    job, _ = read("grpo", GENERATED + "max_completion_length:\n")
    assert job.asked.completion_length is None
    assert {one.key for one in Trl().unmodelled(job)} == {"max_completion_length", "dataset_name"}


@pytest.mark.parametrize(("mode", "named"), [("server", False), ("colocate", True), (None, True)])
def test_vllm_generates_in_place_of_the_policy_and_takes_a_share_where_it_is_colocated(
    read: Callable[..., tuple[Job, MemorySettings]], mode: str | None, named: bool
) -> None:
    lines = f"vllm_mode: {mode}\n" if mode else ""
    job, settings = read("grpo", f"{GENERATED}use_vllm: true\n{lines}")
    assert (settings.generation is not None and settings.generation.by_engine) is named
    assert (job.asked.engine_share, job.asked.engine_sleeps) == (
        (0.3, False) if named else (None, None)
    )
    assert ("use_vllm" in {one.key for one in Trl().unmodelled(job)}) is named


def test_a_smaller_share_and_sleep_are_written(bench: Callable[..., Any], folder: str) -> None:
    table = bench(Trl())
    text = f"{TEXT}{GENERATED}use_vllm: true\nvllm_gpu_memory_utilization: 0.5  # of a card\n"
    job = table.job("trl grpo --config train.yaml", text)
    plan = replace(job.asked, engine_share=0.33, engine_sleeps=True)
    command = table.adapter.write(job, plan, folder)
    assert table.reread(job, command).asked == plan
    written = command.files[0].text
    assert "vllm_gpu_memory_utilization: 0.33  # of a card" in written
    assert "vllm_enable_sleep_mode: true" in written


@pytest.mark.parametrize("lines", ["", "use_vllm: true\n"])
def test_groups_stay_whole_on_every_rung(
    bench: Callable[..., Any], folder: str, lines: str
) -> None:
    table = bench(Trl())
    text = f"{TEXT}{GENERATED}gradient_accumulation_steps: 4\n{lines}"
    job = replace(table.job("trl grpo --config train.yaml", text), engine_least=0.1)
    plan, seen = job.asked, [job.asked]
    for strategy in load_strategies():
        while len(seen) < 100:
            wanted = strategy.applied(job, plan)
            if isinstance(wanted, str) or table.adapter.refusal(job, wanted):
                break
            plan = wanted
            seen.append(plan)
    assert len(seen) > 8
    for plan in seen:
        again = table.reread(job, table.adapter.write(job, plan, folder)).asked
        assert plan.rank_batch == job.asked.rank_batch
        assert (again.generation_batch or 0) % (job.group or 1) == 0
        assert again.generation_batch == plan.generation_batch
    assert {plan.engine_share for plan in seen} >= ({0.3, 0.2, 0.1} if lines else {None})


@pytest.mark.parametrize("command", ["dpo", "kto"])
@pytest.mark.parametrize(("versions", "covered"), [({}, True), ({"trl": "1.16.0"}, False)])
def test_the_loss_of_earlier_versions_is_covered_where_none_is_known(
    read, command, versions, covered
):
    _, settings = read(command)
    found = in_version(settings, Family.HF, versions).objective
    assert found is not None
    assert (found.earlier is not None) is covered
    assert found.earlier is None or (found.earlier.tiles, found.earlier.rows) == (None, found.rows)
