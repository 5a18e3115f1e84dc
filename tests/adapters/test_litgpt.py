from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.litgpt import LitGPT
from oomguard.errors import ConfigError
from oomguard.job.plan import Allocator, Overlong, Plan, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import Device, Job, World

CLI = "litgpt finetune_lora --config train.yaml"
TEXT = """\
# The path to the base model's checkpoint directory
checkpoint_dir: checkpoints/meta-llama/Meta-Llama-3-8B
out_dir: out/llama3   # relative to where it is started
precision: bf16-true

train:
  # Number of samples between optimizer steps
  global_batch_size: 16
  micro_batch_size: 16
  max_seq_length: 2048
"""
EMPTY = "checkpoint_dir: c\n"


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., Job]:
    def reader(text: str = TEXT, argv: str = CLI, **surroundings: Any) -> Job:
        return bench(LitGPT(), **surroundings).job(argv, text)

    return reader


def test_the_defaults_are_litgpts(read: Callable[..., Job]) -> None:
    job = read(EMPTY)
    assert job.asked == Plan(
        micro_batch=1,
        accumulation=16,
        overlong=Overlong.CUT,
        precision=Precision.BF16_MIXED,
        quantization=Quantization.NONE,
        tuning=Tuning.LORA,
        lora_rank=8,
        optimizer="AdamW",
        allocator=Allocator.DEFAULT,
    )
    assert job.output_dir == "/home/me/project/out/finetune/lora"
    full = read(EMPTY, "litgpt finetune_full --config train.yaml")
    assert (full.asked.quantization, full.asked.lora_rank) == (None, None)
    assert full.asked.tuning is Tuning.FULL
    assert full.output_dir == "/home/me/project/out/finetune/full"
    assert read(EMPTY, "litgpt finetune_adapter_v2 --config train.yaml").asked.tuning is (
        Tuning.OTHER
    )


def test_the_file_is_read(read: Callable[..., Job]) -> None:
    job = read()
    assert (job.asked.micro_batch, job.asked.accumulation) == (16, 1)
    assert (job.asked.sequence_length, job.global_batch) == (2048, 16)
    assert job.asked.precision is Precision.BF16_TRUE
    assert job.output_dir == "/home/me/project/out/llama3"


@pytest.mark.parametrize(
    ("argv", "micro"),
    [
        (f"{CLI} --train.micro_batch_size 4", 4),
        (f"{CLI} --train.micro_batch_size=4 --train.micro_batch_size 2", 2),
        ("litgpt finetune_lora --train.micro_batch_size 4 --config train.yaml", 16),
        ("python -m litgpt finetune --config=train.yaml --train.micro_batch_size 4", 4),
    ],
)
def test_words_beat_the_file_only_after_it(read: Callable[..., Job], argv: str, micro: int) -> None:
    assert read(argv=argv).asked.micro_batch == micro


@pytest.mark.parametrize(
    ("line", "gpus", "world", "device"),
    [
        ("", 4, World(), Device.CUDA),
        ("devices: auto", 4, World(per_node=4), Device.CUDA),
        ("devices: -1", 4, World(per_node=4), Device.CUDA),
        ("devices: auto", 0, World(), Device.CPU),
        ("devices: 2\nnum_nodes: 2", 2, World(nodes=2, per_node=2), Device.CUDA),
        ("devices: 2", 0, World(per_node=2), Device.CPU),
    ],
)
def test_devices_make_the_world(
    read: Callable[..., Job], line: str, gpus: int, world: World, device: Device
) -> None:
    job = read(f"{EMPTY}{line}\n", gpus=gpus)
    assert (job.world, job.device) == (world, device)
    assert job.asked.accumulation == 16 // world.size


@pytest.mark.parametrize(
    ("sizes", "accumulation", "effective"),
    [("global_batch_size: 4\n  micro_batch_size: 3", 1, 3), ("global_batch_size: 15", 15, 15)],
)
def test_the_global_batch_is_what_litgpt_makes_of_it(
    read: Callable[..., Job], sizes: str, accumulation: int, effective: int
) -> None:
    job = read(f"{EMPTY}train:\n  {sizes}\n")
    assert (job.asked.accumulation, job.global_batch) == (accumulation, effective)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("quantize: bnb.nf4", "quantization", Quantization.NF4),
        ("quantize: bnb.nf4-dq", "quantization", Quantization.NF4_DOUBLE),
        ("quantize: bnb.int8-training", "quantization", Quantization.INT8),
        ("precision: 16-mixed", "precision", Precision.FP16_MIXED),
        ("precision: 32", "precision", Precision.FP32),
        ("precision: transformer-engine", "precision", None),
        ("optimizer: {class_path: torch.optim.SGD}", "optimizer", "torch.optim.SGD"),
        ("data: {init_args: {num_workers: 4}}", "loader_workers", 4),
        ("lora_r: 32", "lora_rank", 32),
    ],
)
def test_a_key_is_read_into_its_field(
    read: Callable[..., Job], line: str, field: str, value: object
) -> None:
    assert getattr(read(f"{EMPTY}{line}\n").asked, field) == value


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (CLI, EMPTY),
        (f"{CLI} c", "checkpoint_dir: other\n"),
        ("litgpt finetune_lora x --config train.yaml", EMPTY),
        ("litgpt finetune_lora c --config train.yaml", "precision: bf16-true\n"),
        ("litgpt finetune_lora --devices 1 c --config train.yaml", "precision: bf16-true\n"),
        ("litgpt finetune_lora --config train.yaml --checkpoint_dir c", "precision: bf16-true\n"),
    ],
)
def test_without_a_limit_the_models_own_holds(
    bench: Callable[..., Any], argv: str, text: str
) -> None:
    path = "/home/me/project/c/model_config.yaml"
    table = bench(LitGPT(), files={path: "block_size: 8192\nname: Llama-3-8B\n"})
    assert table.adapter.referenced_files(table.request(argv, text)) == (path,)
    assert table.job(argv, text).asked.sequence_length == 8192
    assert bench(LitGPT()).job(argv, text).asked.sequence_length is None


def test_too_large_a_micro_batch_is_named(read: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError, match="bare AssertionError") as caught:
        read(f"{EMPTY}train:\n  micro_batch_size: 32\n")
    assert str(caught.value.where) == (
        "/home/me/project/train.yaml:3, key 'train.micro_batch_size'"
    )


@pytest.mark.parametrize(
    ("lines", "message", "line"),
    [
        ("train:\n  micro_batch_size: many\n", "must be an integer of at least 1, not 'many'", 3),
        ("train:\n  max_seq_length: 0\n", "at least 1, not 0", 3),
        ("devices: all\n", "must be an integer of at least 1, not 'all'", 2),
        ("precision: [a]\n", "must be a string", 2),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    read: Callable[..., Job], lines: str, message: str, line: int
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(EMPTY + lines)
    assert caught.value.where is not None
    assert caught.value.where.line == line


@pytest.mark.parametrize(
    "argv",
    [
        CLI,
        "litgpt finetune_lora ckpt --config=train.yaml --train.micro_batch_size 4",
        "litgpt finetune_lora --lora_r 4 --config train.yaml",
    ],
)
def test_what_was_asked_is_written_as_the_user_wrote_it(
    bench: Callable[..., Any], folder: str, argv: str
) -> None:
    table = bench(LitGPT(), env={"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"})
    job = table.job(argv, TEXT)
    command = table.adapter.write(job, job.asked, folder)
    assert command.argv == tuple(argv.replace("train.yaml", f"{folder}/train.yaml").split())
    assert [file.text for file in command.files] == [TEXT]
    assert command.env == {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}


def test_a_smaller_micro_batch_leaves_the_global_batch_alone(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LitGPT())
    job = table.job(CLI, TEXT)
    command = table.adapter.write(job, replace(job.asked, micro_batch=4, accumulation=4), folder)
    assert command.files[0].text == TEXT.replace("micro_batch_size: 16", "micro_batch_size: 4")


def test_a_floored_global_batch_is_corrected_where_it_has_to_be(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LitGPT())
    job = table.job(CLI, EMPTY + "train:\n  global_batch_size: 11\n  micro_batch_size: 6\n")
    assert job.global_batch == 6
    plan = replace(job.asked, micro_batch=2, accumulation=3)
    command = table.adapter.write(job, plan, folder)
    assert command.files[0].text == EMPTY + (
        "train:\n  global_batch_size: 6\n  micro_batch_size: 2\n"
    )


def test_a_changed_optimizer_keeps_its_block(bench: Callable[..., Any], folder: str) -> None:
    table = bench(LitGPT())
    text = EMPTY + "optimizer:\n  class_path: torch.optim.AdamW\n  init_args:\n    lr: 0.1\n"
    job = table.job(CLI, text)
    command = table.adapter.write(job, replace(job.asked, optimizer="x.SGD"), folder)
    assert command.files[0].text == text.replace("torch.optim.AdamW", "x.SGD")


@pytest.mark.parametrize(
    ("env", "after"),
    [
        ({}, "expandable_segments:True"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            "max_split_size_mb:64,expandable_segments:True",
        ),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:True"),
    ],
)
def test_the_allocator_stands_in_the_environment(
    bench: Callable[..., Any], folder: str, env: dict[str, str], after: str
) -> None:
    table = bench(LitGPT(), env=env)
    job = table.job(CLI, TEXT)
    plan = replace(job.asked, allocator=Allocator.EXPANDABLE)
    command = table.adapter.write(job, plan, folder)
    assert command.env == {"PYTORCH_CUDA_ALLOC_CONF": after}
    assert table.reread(job, command).asked == plan


def test_a_newer_name_of_the_allocators_variable_is_used(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LitGPT(), env={"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    job = table.job(CLI, TEXT)
    command = table.adapter.write(job, replace(job.asked, allocator=Allocator.DEFAULT), folder)
    assert command.env == {"PYTORCH_ALLOC_CONF": ""}


def test_a_quantized_base_settles_on_bf16_weights(read: Callable[..., Job]) -> None:
    job, adapter = read(EMPTY), LitGPT()
    quantized = replace(job.asked, quantization=Quantization.NF4)
    assert adapter.refusal(job, quantized) == "Quantization and mixed precision is not supported."
    settled = adapter.normalize(job, quantized)
    assert settled == replace(quantized, precision=Precision.BF16_TRUE)
    assert adapter.refusal(job, settled) is None
    assert adapter.normalize(job, job.asked) == job.asked
    assert adapter.required_packages(job, settled) == {"bitsandbytes"}


NF4 = {"quantization": Quantization.NF4, "precision": Precision.BF16_TRUE}


@pytest.mark.parametrize(
    ("lines", "gpus", "change", "message"),
    [
        ("", 0, NF4, "Bitsandbytes is only supported on CUDA GPUs."),
        ("devices: 2", 2, NF4, "Quantization is currently not supported for multi-GPU training."),
        ("optimizer: SGD", 1, NF4, "only supports the AdamW optimizer"),
        ("", 1, {"checkpointing": True}, "no setting for gradient checkpointing"),
        ("", 2, {"sharding": Sharding.ZERO3}, "no DeepSpeed ZeRO"),
        ("", 1, {"low_cpu_mem_usage": True}, "no setting for low_cpu_mem_usage true"),
        ("", 1, {"sequence_length": 512}, "no setting for sequence_length 512"),
        ("", 1, {"tuning": Tuning.FULL}, "no setting for tuning 'full'"),
    ],
)
def test_a_refused_plan_is_refused_in_litgpts_words(
    read: Callable[..., Job], lines: str, gpus: int, change: dict[str, Any], message: str
) -> None:
    job = read(f"{EMPTY}{lines}\n", gpus=gpus)
    assert LitGPT().refusal(job, job.asked) is None
    assert message in (LitGPT().refusal(job, replace(job.asked, **change)) or "")


def test_full_fine_tuning_has_no_quantize(read: Callable[..., Job]) -> None:
    job = read(EMPTY, "litgpt finetune_full --config train.yaml")
    why = LitGPT().refusal(job, replace(job.asked, **NF4))
    assert why == "error: Unrecognized arguments: --quantize"


@pytest.mark.parametrize(
    ("argv", "recognised", "config"),
    [
        ("litgpt finetune c --config a.yaml --config b.yaml", True, "b.yaml"),
        ("/x/bin/litgpt finetune_full c", True, None),
        ("python -m litgpt finetune_lora --config=a.yaml", True, "a.yaml"),
        ("litgpt pretrain --config a.yaml", False, None),
        ("litgpt", False, None),
        ("python train.py", False, None),
    ],
)
def test_its_commands_are_recognised(argv: str, recognised: bool, config: str | None) -> None:
    words = tuple(argv.split())
    assert bool(LitGPT().recognizes_command(words)) is recognised
    assert LitGPT().config_path(words) == config


def test_a_bare_file_needs_lora_keys_or_a_command(bench: Callable[..., Any]) -> None:
    source = bench(LitGPT()).request(CLI, TEXT).source
    config = ("--config", "/home/me/project/train.yaml")
    assert LitGPT().command_for(source, {"lora_r": 8}, ()) == ("litgpt", "finetune_lora", *config)
    own = LitGPT().command_for(source, {}, ("litgpt", "finetune_full"))
    assert own == ("litgpt", "finetune_full", *config)
    with pytest.raises(ConfigError, match="which LitGPT command") as caught:
        LitGPT().command_for(source, {}, ())
    assert "oomguard: {command: [litgpt, finetune_full]}" in caught.value.next_step
