from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from oomguard.adapters.trl import Trl
from oomguard.configfile.document import Source
from oomguard.errors import ConfigError
from oomguard.estimate.formats import stored
from oomguard.job.plan import (
    Allocator,
    LossKernel,
    Offload,
    Overlong,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Job, World
from oomguard.job.unmodelled import TrainingMethod

CLI = "trl sft --config train.yaml"
TEXT = """\
# what is trained
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: data  # a folder of jsonl
output_dir: out
"""
ACCELERATE = """\
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: 2  # the user's own
  gradient_accumulation_steps: 1
num_processes: 2
"""


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., Job]:
    def reader(argv: str = CLI, text: str | None = TEXT, **more: Any) -> Job:
        return bench(Trl(), **more).job(argv, text)

    return reader


def test_the_defaults_are_trls(read: Callable[..., Job]) -> None:
    job = read()
    assert job.asked == Plan(
        micro_batch=8,
        accumulation=1,
        overlong=Overlong.CUT,
        sequence_length=1024,
        checkpointing=True,
        precision=Precision.BF16_MIXED,
        quantization=Quantization.NONE,
        tuning=Tuning.FULL,
        sharding=Sharding.NONE,
        offload=frozenset(),
        optimizer="adamw_torch",
        loss_kernel=LossKernel.FUSED,
        loader_workers=0,
        pin_memory=True,
        allocator=Allocator.DEFAULT,
        eval_batch=8,
        eval_accumulation=0,
        prediction_loss_only=False,
        auto_find_batch_size=False,
    )
    assert job.argv == tuple(CLI.split())


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("max_length: null", "sequence_length", None),
        ("max_length: 5", "sequence_length", 5),
        ("gradient_checkpointing: false", "checkpointing", False),
        ("dtype: bfloat16", "precision", Precision.BF16_TRUE),
        ("dtype: auto", "precision", None),
        ("fp16: true", "precision", Precision.FP16_MIXED),
        ("bf16: false", "precision", Precision.FP32),
        ("load_in_4bit: true", "quantization", Quantization.NF4),
        ("load_in_8bit: true", "quantization", Quantization.INT8),
        ("use_peft: true", "lora_rank", 16),
        ("use_peft: true", "tuning", Tuning.LORA),
        ("activation_offloading: true", "offload", frozenset({Offload.ACTIVATIONS})),
        ("loss_type: dft", "loss_kernel", LossKernel.FUSED),
        ("label_smoothing_factor: 0.1", "loss_kernel", LossKernel.EAGER),
        ("accelerate_config: zero3", "sharding", Sharding.ZERO3),
        ("accelerate_config: fsdp2", "sharding", Sharding.FSDP),
        ("accelerate_config: gone.yaml", "sharding", None),
    ],
)
def test_a_key_is_read(read: Callable[..., Job], line: str, field: str, value: object) -> None:
    assert getattr(read(text=f"{TEXT}{line}\n").asked, field) == value


@pytest.mark.parametrize(
    ("argv", "gpus", "world"),
    [
        (CLI, 1, World()),
        (CLI, 2, World(per_node=2)),
        (f"{CLI} --num_processes 3", 4, World(per_node=3)),
        (f"{CLI} --accelerate_config zero2", 2, World(per_node=8)),
        (f"{CLI} --accelerate_config zero2 --num_processes 2", 2, World(per_node=2)),
        (f"{CLI} --accelerate_config single_gpu", 2, World()),
        (
            "torchrun --nproc-per-node 2 -m trl.scripts.sft --config train.yaml",
            4,
            World(per_node=2),
        ),
        ("python -m trl.scripts.sft", 1, World()),
    ],
)
def test_accelerate_makes_the_world(
    read: Callable[..., Job], argv: str, gpus: int, world: World
) -> None:
    assert read(argv, gpus=gpus).world == world


def test_a_word_on_the_command_line_beats_the_file_and_is_edited_there(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(Trl())
    job = table.job(f"{CLI} --max_length 64", TEXT + "max_length: 8\n")
    assert job.asked.sequence_length == 64
    command = table.adapter.write(job, replace(job.asked, sequence_length=32), folder)
    assert command.argv[-2:] == ("--max_length", "32")
    assert command.files[0].text == job.config.text


def test_a_config_of_accelerates_is_edited_in_place(bench: Callable[..., Any], folder: str) -> None:
    path = "/home/me/project/acc.yaml"
    table = bench(Trl(), files={path: ACCELERATE})
    job = table.job(CLI, TEXT + "accelerate_config: acc.yaml\n")
    assert (job.asked.sharding, job.world.size) == (Sharding.ZERO2, 2)
    assert table.adapter.referenced_files(table.request(job_argv(job), job.config.text)) == (path,)
    plan = replace(job.asked, sharding=Sharding.ZERO3, micro_batch=4, accumulation=2)
    command = table.adapter.write(job, plan, folder)
    text = command.files[0].text
    assert "zero_stage: 3  # the user's own\n" in text
    values = yaml.safe_load(text)
    assert values["deepspeed_config"]["gradient_accumulation_steps"] == "auto"
    assert values["num_processes"] == 2
    assert f"accelerate_config: {command.files[0].path}" in command.files[1].text
    assert table.reread(job, command).asked == plan


def job_argv(job: Job) -> str:
    return " ".join(job.argv)


def test_a_job_without_accelerates_config_gets_one_for_its_processes(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(Trl(), gpus=2)
    job = table.job(CLI, TEXT)
    plan = replace(job.asked, sharding=Sharding.ZERO2, offload=frozenset({Offload.OPTIMIZER}))
    command = table.adapter.write(job, plan, folder)
    assert yaml.safe_load(command.files[0].text)["num_processes"] == 2
    assert table.reread(job, command).asked == plan


def test_lora_comes_with_trls_rank(bench: Callable[..., Any], folder: str) -> None:
    table = bench(Trl())
    job = table.job(CLI, TEXT)
    plan = table.adapter.normalize(job, replace(job.asked, tuning=Tuning.LORA))
    assert plan.lora_rank == 16
    assert table.adapter.refusal(job, plan) is None
    assert table.reread(job, table.adapter.write(job, plan, folder)).asked == plan


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        ("", {"quantization": Quantization.NF4}, "purely quantized models"),
        (
            "auto_find_batch_size: true",
            {"sharding": Sharding.ZERO3},
            "`auto_find_batch_size` isn't supported",
        ),
        ("", {"loss_kernel": LossKernel.EAGER}, "no setting for loss_kernel"),
        ("zero_stage: 2\nuse_deepspeed: true", {"sharding": Sharding.ZERO3}, "--use_deepspeed"),
        ("accelerate_config: gone", {"sharding": Sharding.ZERO3}, "was not found"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    read: Callable[..., Job], line: str, change: dict[str, Any], message: str
) -> None:
    job = read(text=f"{TEXT}{line}\n")
    assert Trl().refusal(job, job.asked) is None
    assert message in (Trl().refusal(job, replace(job.asked, **change)) or "")


@pytest.mark.parametrize(
    "argv",
    [
        "trl dpo --config train.yaml",
        "torchrun --nproc-per-node 1 -m trl.scripts.dpo --config train.yaml",
        "python trl/scripts/dpo.py --config train.yaml",
    ],
)
def test_dpo_keeps_its_command_and_its_global_batch(
    bench: Callable[..., Any], folder: str, argv: str
) -> None:
    # A micro batch counts pairs (trl 1.16, trainer/dpo_trainer.py), so that halving it splits none.
    table = bench(Trl())
    job = table.job(argv, TEXT + "loss_type: [sigmoid, sft]\n")
    assert table.adapter.training_method(job) is TrainingMethod.DPO
    plan = replace(job.asked, micro_batch=4, accumulation=2)
    command = table.adapter.write(job, plan, folder)
    assert command.argv[:-1] == job.argv[:-1]
    written = yaml.safe_load(command.files[0].text)
    assert written["per_device_train_batch_size"] * written["gradient_accumulation_steps"] == 8
    assert table.reread(job, command).asked == plan


def test_a_reward_model_has_no_logits_to_fuse(read: Callable[..., Job]) -> None:
    job = read("trl reward --config train.yaml")
    assert Trl().training_method(job) is TrainingMethod.REWARD
    assert job.asked.loss_kernel is None


def test_a_synced_reference_model_excludes_an_adapter(read: Callable[..., Job]) -> None:
    job = read("trl dpo --config train.yaml", TEXT + "sync_ref_model: true\n")
    assert Trl().refusal(job, job.asked) is None
    switched = Trl().normalize(job, replace(job.asked, tuning=Tuning.LORA))
    assert "sync_ref_model" in (Trl().refusal(job, switched) or "")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("f_divergence_type: reverse_kl\nbeta: 0.1", "dpo"),
        ("center_rewards_coefficient: 0.1", "reward"),
        ("packing: true", "sft"),
        ("desirable_weight: 1.0\nbeta: 0.1", "kto"),
        ("reward_funcs: [a]\nloss_type: dr_grpo\nscale_rewards: none", "grpo"),
        ("reward_funcs: [a]\nnormalize_advantages: true", "rloo"),
        ("precompute_ref_log_probs: true\ntruncation_mode: keep_end", "dpo"),
    ],
)
def test_a_config_starts_the_only_command_that_has_its_settings(line: str, command: str) -> None:
    source = Source(path="train.yaml", text=f"{TEXT}{line}\n")
    argv = Trl().command_for(source, source.document.values, ())
    assert argv == ("trl", command, "--config", "train.yaml")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("precompute_ref_log_probs: true\n", "a setting of trl dpo and kto, not of trl sft"),
        ("desirable_weight: 1.0\nlabel_smoothing: 0.1\n", "no command of TRL has all of"),
    ],
)
def test_a_config_that_shows_no_one_command_is_refused(lines: str, said: str) -> None:
    source = Source(path="train.yaml", text=TEXT + lines)
    with pytest.raises(ConfigError, match=said):
        Trl().command_for(source, source.document.values, ())


def test_a_setting_of_one_command_is_unknown_to_the_others(read: Callable[..., Job]) -> None:
    text = TEXT + "sync_ref_model: true\npacking: true\n"
    assert Trl().unknown(read("trl dpo --config train.yaml", text)) == ("packing",)
    assert Trl().unknown(read(CLI, text)) == ("sync_ref_model",)


@pytest.mark.parametrize(
    ("model", "line", "trained_bytes"),
    [
        ("Qwen2.5-0.5B", "", 4),
        ("Qwen2.5-0.5B", "load_in_4bit: true\n", 2),
        ("Qwen2.5-0.5B-Instruct-AWQ", "", 4),  # TRL looks at is_loaded_in_4bit and _8bit alone
    ],
)
def test_an_adapter_over_a_base_that_bitsandbytes_quantizes_is_cast_to_bf16(
    read: Callable[..., Job], model: str, line: str, trained_bytes: int
) -> None:
    job = read(text=f"{TEXT.replace('Qwen2.5-0.5B', model)}use_peft: true\n{line}")
    found = Trl().memory_settings(job)
    assert stored(job.asked, found).trained_bytes == trained_bytes
    assert not found.code.kbit_float32


SMOOTHING = "label_smoothing_factor"


@pytest.mark.parametrize(
    ("line", "tiled"),
    [
        ("", True),
        ("loss_type: dft\n", True),
        ("label_smoothing_factor: 0.1\n", False),
        ("label_smoothing_factor: 0.1\nloss_type: dft\n", True),
    ],
)
def test_the_loss_of_trl_sft_comes_from_tiles_of_the_logits(
    read: Callable[..., Job], line: str, tiled: bool
) -> None:
    job = read(text=f"{TEXT}use_peft: true\nlora_dropout: 0.1\n{line}")
    found = Trl().memory_settings(job)
    assert (found.objective is not None) is tiled
    assert job.asked.loss_kernel is (LossKernel.FUSED if tiled else LossKernel.EAGER)
    assert found.lora is not None
    assert found.lora.dropout == 0.1
    assert [one.key for one in Trl().unmodelled(job)] == ([] if tiled else [SMOOTHING])
