from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.ms_swift import MsSwift
from oomguard.errors import ConfigError
from oomguard.job.checkpoint import Mode
from oomguard.job.memory_settings import Reference
from oomguard.job.plan import Offload, Part, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import World
from oomguard.job.unmodelled import TrainingMethod

CLI = "swift sft train.yaml"
TEXT = "model: Qwen/Qwen2.5-7B\ndataset: d.jsonl\n"
VISION = "model: Qwen/Qwen2.5-VL-7B\ndataset: d.jsonl\n"
BOTH = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})


@pytest.mark.parametrize(
    ("lines", "env", "world", "accumulation"),
    [
        ("", {}, World(), 16),
        ("per_device_train_batch_size: 3", {}, World(), 6),
        ("", {"NPROC_PER_NODE": "4"}, World(per_node=4), 4),
        ("", {"NNODES": "2"}, World(nodes=2), 8),
        ("gradient_accumulation_steps: 5", {"NPROC_PER_NODE": "2"}, World(per_node=2), 5),
    ],
)
def test_the_batch_that_is_not_stated_follows_micro_batch_and_world(
    bench: Callable[..., Any], lines: str, env: dict[str, str], world: World, accumulation: int
) -> None:
    job = bench(MsSwift(), gpus=4, env=env).job(CLI, f"{TEXT}{lines}\n")
    assert (job.world, job.asked.accumulation) == (world, accumulation)


def test_a_new_micro_batch_is_written_with_its_accumulation(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(MsSwift())
    job = table.job(CLI, TEXT + "per_device_train_batch_size: 4\n")
    plan = replace(job.asked, micro_batch=2)
    text = table.adapter.write(job, plan, folder).files[0].text
    assert "gradient_accumulation_steps: 4\n" in text


@pytest.mark.parametrize(
    ("sharding", "offload", "name"),
    [
        (Sharding.ZERO2, frozenset(), "zero2"),
        (Sharding.ZERO2, frozenset({Offload.OPTIMIZER}), "zero2_offload"),
        (Sharding.ZERO3, BOTH, "zero3_offload"),
    ],
)
def test_a_stage_has_ms_swifts_name_and_torchrun(
    bench: Callable[..., Any], folder: str, sharding: Sharding, offload: Any, name: str
) -> None:
    table = bench(MsSwift())
    job = table.job(CLI, TEXT)
    command = table.adapter.write(
        job, replace(job.asked, sharding=sharding, offload=offload), folder
    )
    assert command.files[0].text == f"{TEXT}deepspeed: {name}\n"
    assert command.env["NPROC_PER_NODE"] == "1"


def test_what_no_name_says_stands_in_a_file(bench: Callable[..., Any], folder: str) -> None:
    table = bench(MsSwift())
    job = table.job(CLI, TEXT + "deepspeed: zero3\n")
    plan = replace(job.asked, offload=frozenset({Offload.OPTIMIZER}))
    command = table.adapter.write(job, plan, folder)
    assert command.files[0].path == f"{folder}/deepspeed_zero3.json"
    assert table.reread(job, command).asked == plan


@pytest.mark.parametrize(
    ("lines", "precision"),
    [
        ("", Precision.BF16_MIXED),
        ("torch_dtype: bfloat16", Precision.BF16_MIXED),
        ("torch_dtype: float32", Precision.FP16_MIXED),
        ("torch_dtype: float16", Precision.FP16_MIXED),
        ("torch_dtype: float32\nbf16: true", Precision.BF16_MIXED),
        ("torch_dtype: float32\nfp16: false", Precision.FP32),
        ("torch_dtype: bfloat16\nbf16: false", None),
    ],
)
def test_autocast_follows_the_weights_unless_it_is_stated(
    bench: Callable[..., Any], lines: str, precision: Precision | None
) -> None:
    # base_args/model_args.py, _init_mixed_precision
    assert bench(MsSwift()).job(CLI, f"{TEXT}{lines}\n").asked.precision is precision


@pytest.mark.parametrize(
    ("lines", "accumulation", "compares"),
    [
        ("rlhf_type: dpo", 16, False),
        ("rlhf_type: kto", 16, True),
        ("rlhf_type: kto\nloss_type: apo_zero_unpaired", 16, False),
        ("rlhf_type: grpo", 1, False),
    ],
)
def test_swift_rlhf_is_launched_as_itself(
    bench: Callable[..., Any], folder: str, lines: str, accumulation: int, compares: bool
) -> None:
    table = bench(MsSwift())
    job = table.job("swift rlhf train.yaml", f"{TEXT}{lines}\n")
    assert (job.asked.accumulation, job.compares_samples) == (accumulation, compares)
    assert job.asked.loss_kernel is None
    command = table.adapter.write(job, replace(job.asked, checkpointing=False), folder)
    assert command.argv[:2] == ("swift", "rlhf")
    assert table.reread(job, command).asked == replace(job.asked, checkpointing=False)


def test_a_vision_model_has_parts(bench: Callable[..., Any]) -> None:
    job = bench(MsSwift()).job(CLI, VISION)
    assert job.multimodal
    assert job.asked.frozen == {Part.VISION_TOWER, Part.PROJECTOR}
    assert bench(MsSwift()).job(CLI, TEXT).asked.frozen is None


@pytest.mark.parametrize(
    ("lines", "change", "message"),
    [
        ("tuner_type: full", {"quantization": Quantization.NF4}, "purely quantized"),
        (
            "auto_find_batch_size: true",
            {"sharding": Sharding.ZERO3},
            "`auto_find_batch_size` isn't",
        ),
        ("", {"tuning": Tuning.OTHER}, "no setting for tuning"),
        ("", {"image_pixels": 9}, "no setting for image_pixels"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    bench: Callable[..., Any], lines: str, change: dict[str, Any], message: str
) -> None:
    job = bench(MsSwift()).job(CLI, f"{TEXT}{lines}\n")
    assert MsSwift().refusal(job, job.asked) is None
    assert message in (MsSwift().refusal(job, replace(job.asked, **change)) or "")


def test_checkpoints_are_found_where_runs_share_a_folder(bench: Callable[..., Any]) -> None:
    own = bench(MsSwift()).job(CLI, TEXT)
    assert MsSwift().checkpoint_layout(own) is None
    assert MsSwift().resume_mode(own, own.asked, own.asked)[0] is Mode.RESTART
    shared = bench(MsSwift()).job(CLI, TEXT + "add_version: false\n")
    assert MsSwift().checkpoint_layout(shared).folder == "/home/me/project/output"
    assert MsSwift().resume_mode(shared, shared.asked, shared.asked)[0] is Mode.FULL


GRPO = "model: Qwen/Qwen2.5-0.5B\nrlhf_type: grpo\ndataset: d\nper_device_train_batch_size: 8\n"


def test_grpo_generates_whole_groups_on_every_rung(bench: Callable[..., Any], folder: str) -> None:
    table = bench(MsSwift())
    text = f"{GRPO}gradient_accumulation_steps: 2\nuse_vllm: true\nvllm_mode: colocate\n"
    job = table.job("swift rlhf train.yaml", text)
    assert (job.group, job.asked.generation_batch, job.asked.completion_length) == (8, 16, 512)
    assert (job.asked.engine_share, job.asked.engine_sleeps) == (0.9, False)
    plan = replace(
        job.asked, micro_batch=4, accumulation=4, engine_share=0.6, engine_sleeps=True,
        completion_length=256,
    )  # fmt: skip
    assert table.adapter.refusal(job, plan) is None
    command = table.adapter.write(job, plan, folder)
    assert table.reread(job, command).asked == plan
    assert "sleep_level: 1" in command.files[0].text
    torn = replace(job.asked, generation_batch=12)
    assert "divisible" in (table.adapter.refusal(job, torn) or "")


@pytest.mark.parametrize(
    ("lines", "reference"),
    [("", Reference.START), ("beta: 0\n", Reference.NONE), ("ref_model: o\n", Reference.MODEL)],
)
def test_grpo_is_described_and_its_unmeasured_loss_named(
    bench: Callable[..., Any], lines: str, reference: Reference
) -> None:
    table = bench(MsSwift())
    job = table.job("swift rlhf train.yaml", GRPO + lines)
    settings = table.adapter.memory_settings(job)
    assert settings.objective is not None
    assert settings.objective.method is TrainingMethod.GRPO
    assert settings.objective.reference is reference
    assert settings.generation is not None
    assert not settings.generation.by_engine
    assert {"rlhf_type", "dataset"} <= {one.key for one in table.adapter.unmodelled(job)}


@pytest.mark.parametrize("command", ["sft", "rlhf"])
def test_other_methods_generate_nothing(bench: Callable[..., Any], command: str) -> None:
    job = bench(MsSwift()).job(f"swift {command} train.yaml", "model: a/b\ndataset: d\n")
    plan = job.asked
    assert (job.group, plan.completion_length, plan.generation_batch) == (None, None, None)


@pytest.mark.parametrize(
    ("argv", "world"),
    [
        ("python /opt/bin/swift sft --model m --dataset d", World()),
        ("python -m swift.cli.main sft --model m --dataset d", World()),
        ("python swift/cli/main.py sft --model m --dataset d", World()),
        ("torchrun --nproc_per_node 2 /opt/bin/swift sft --model m --dataset d", World(per_node=2)),
    ],
)
def test_the_program_may_be_started_by_a_launcher(
    bench: Callable[..., Any], folder: str, argv: str, world: World
) -> None:
    table = bench(MsSwift())
    assert table.adapter.recognizes_command(tuple(argv.split()))
    job = table.job(argv)
    assert job.world == world
    command = table.adapter.write(job, replace(job.asked, lora_rank=4), folder)
    assert command.argv == (*argv.split(), "--lora_rank", "4")


def test_what_a_launcher_starts_besides_is_not_its() -> None:
    assert not MsSwift().recognizes_command(("python", "/opt/bin/swift", "infer"))
    assert not MsSwift().recognizes_command(("python", "/opt/bin/swift"))


@pytest.mark.parametrize(("name", "other"), [("train_type", "tuner_type"), ("tuner_type", "x")])
def test_a_setting_of_version_3_is_read_and_kept(
    bench: Callable[..., Any], folder: str, name: str, other: str
) -> None:
    table = bench(MsSwift())
    job = table.job(CLI, f"{TEXT}{name}: full\n")
    assert (job.asked.tuning, job.asked.lora_rank) == (Tuning.FULL, None)
    assert not table.adapter.unknown(job)
    plan = replace(job.asked, tuning=Tuning.LORA, lora_rank=8)
    (file,) = table.adapter.write(job, plan, folder).files
    assert f"{name}: lora\n" in file.text
    assert other not in file.text


@pytest.mark.parametrize(
    ("line", "later"),
    [
        ("sft_type: full", "tuner_type"),
        ("model_id_or_path: m", "model"),
        ("lora_target_modules: ALL", "target_modules"),
        ("quantization_bit: 4", "quant_bits"),
        ("batch_size: 2", "per_device_train_batch_size"),
    ],
)
def test_the_settings_of_version_2_are_refused_with_their_later_names(
    bench: Callable[..., Any], line: str, later: str
) -> None:
    with pytest.raises(ConfigError, match="is a setting of ms-swift 2") as caught:
        bench(MsSwift()).job(CLI, f"{TEXT}{line}\n")
    assert later in caught.value.next_step
    assert caught.value.where is not None
    assert caught.value.where.line == 3


def test_modules_of_given_names_are_adapted_in_frozen_parts_too(bench: Callable[..., Any]) -> None:
    table = bench(MsSwift())
    assert table.job(CLI, VISION + "target_modules: all-linear\n").asked.frozen is not None
    assert table.job(CLI, VISION + "target_modules: [qkv]\n").asked.frozen is None
    full = VISION + "target_modules: [qkv]\ntuner_type: full\n"
    assert table.job(CLI, full).asked.frozen is not None
