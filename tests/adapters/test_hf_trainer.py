from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.conftest import CWD
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.registry import detect_command
from oomguard.errors import ConfigError, FrameworkError
from oomguard.estimate.formats import stored
from oomguard.job.plan import (
    Allocator,
    LossKernel,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import Direction

TEXT = """\
# what is trained
model_name_or_path: gpt2
max_length: 256
learning_rate: 1.0e-3
bf16: true  # the card can

per_device_train_batch_size: 16
gradient_checkpointing: false
report_to: [wandb, tensorboard]
seed:
lr_scheduler_kwargs: {min_lr: 0.1}
"""
FLAGS = (
    *("--model_name_or_path", "gpt2", "--max_length", "256", "--learning_rate", "0.001"),
    *("--bf16", "True", "--per_device_train_batch_size", "16"),
    *("--gradient_checkpointing", "False", "--report_to", "wandb", "tensorboard"),
    *("--lr_scheduler_kwargs", '{"min_lr": 0.1}'),
)
JSON = '{\n    "per_device_train_batch_size": 16,\n    "output_dir": "out"\n}\n'


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., Job]:
    def reader(argv: str = "python train.py", text: str | None = None, **more: Any) -> Job:
        return bench(HFTrainer(), **more).job(argv, text)

    return reader


def test_the_defaults_are_the_trainers(read: Callable[..., Job]) -> None:
    job = read("python train.py --model_name_or_path gpt2")
    assert job.asked == Plan(
        micro_batch=8,
        accumulation=1,
        checkpointing=False,
        precision=Precision.FP32,
        tuning=Tuning.FULL,
        sharding=Sharding.NONE,
        offload=frozenset(),
        optimizer="adamw_torch",
        loss_kernel=LossKernel.EAGER,
        loader_workers=0,
        pin_memory=True,
        allocator=Allocator.DEFAULT,
        eval_batch=8,
        eval_accumulation=0,
        prediction_loss_only=False,
        auto_find_batch_size=False,
    )
    assert (job.world, job.device, job.config) == (World(), Device.CUDA, None)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--per_device_train_batch_size=4", "micro_batch", 4),
        ("--max_seq_length 512", "sequence_length", 512),
        ("--block-size 512", "sequence_length", 512),
        ("--bf16", "precision", Precision.BF16_MIXED),
        ("--fp16 True", "precision", Precision.FP16_MIXED),
        ("--gradient_checkpointing", "checkpointing", True),
        ("--load_in_4bit False", "quantization", Quantization.NONE),
        ("--load_in_4bit", "quantization", Quantization.NF4_DOUBLE),
        ("--load_in_4bit --use_bnb_nested_quant False", "quantization", Quantization.NF4),
        ("--load_in_4bit False --load_in_8bit", "quantization", Quantization.INT8),
        ("--use_peft --lora_r 16", "tuning", Tuning.LORA),
        ("--use_peft False", "tuning", Tuning.FULL),
        ("--lora_r 16", "lora_rank", 16),
        ("--low_cpu_mem_usage", "low_cpu_mem_usage", True),
        ("--use_liger_kernel", "loss_kernel", LossKernel.FUSED),
        ("--no_dataloader_pin_memory", "pin_memory", False),
        ("--fsdp full_shard", "sharding", Sharding.FSDP),
        ("--deepspeed gone.json", "sharding", None),
    ],
)
def test_a_flag_is_read_into_its_field(
    read: Callable[..., Job], flags: str, field: str, value: object
) -> None:
    assert getattr(read(f"python train.py {flags}").asked, field) == value


@pytest.mark.parametrize(
    ("argv", "gpus", "world", "device"),
    [
        ("python train.py", 1, World(), Device.CUDA),
        ("python train.py", 0, World(), Device.CPU),
        ("python train.py", 4, World(per_node=4), Device.CUDA),  # nn.DataParallel
        ("python train.py --use_cpu", 4, World(), Device.CPU),
        ("python -m accelerate.commands.launch t.py", 2, World(per_node=2), Device.CUDA),
        ("torchrun --nproc-per-node 2 train.py", 4, World(per_node=2), Device.CUDA),
        ("accelerate launch train.py", 2, World(per_node=2), Device.CUDA),
        ("deepspeed train.py", 2, World(per_node=2), Device.CUDA),
    ],
)
def test_the_launcher_makes_the_world(
    read: Callable[..., Job], argv: str, gpus: int, world: World, device: Device
) -> None:
    job = read(argv, gpus=gpus)
    assert (job.world, job.device) == (world, device)


def test_a_flat_yaml_becomes_flags(read: Callable[..., Job]) -> None:
    job = read("python train.py --optim sgd", TEXT)
    assert job.argv == ("python", "train.py", *FLAGS, "--optim", "sgd")
    assert (job.asked.micro_batch, job.asked.sequence_length) == (16, 256)
    assert job.asked.optimizer == "sgd"


def test_a_flag_of_the_command_beats_what_stands_in_the_file(read: Callable[..., Job]) -> None:
    assert read("python train.py --max_length 8", TEXT).asked.sequence_length == 8


def test_a_flat_yaml_is_edited_and_its_flags_follow(bench: Callable[..., Any], folder: str) -> None:
    table = bench(HFTrainer())
    job = table.job("python train.py", TEXT)
    plan = replace(job.asked, micro_batch=8, accumulation=2)
    command = table.adapter.write(job, plan, folder)
    text = command.files[0].text
    assert text == TEXT.replace("size: 16", "size: 8") + "gradient_accumulation_steps: 2\n"
    flags = ["8" if flag == "16" else flag for flag in FLAGS]
    expected = ("python", "train.py", *flags, "--gradient_accumulation_steps", "2")
    assert command.argv == expected
    assert table.reread(job, command).asked == plan


def test_a_flat_yaml_of_nested_lists_is_refused(read: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError, match="cannot become command-line flags") as caught:
        read("python train.py", "a: 1\nb:\n  - [1, 2]\n")
    assert str(caught.value.where) == "/home/me/project/train.yaml:2, key 'b'"


def test_a_json_is_the_scripts_only_word(bench: Callable[..., Any], folder: str) -> None:
    table = bench(HFTrainer())
    job = table.job("torchrun run_clm.py args.json", JSON, name="args.json")
    assert job.asked.micro_batch == 16
    assert job.output_dir == "/home/me/project/out"
    command = table.adapter.write(job, replace(job.asked, micro_batch=8, accumulation=2), folder)
    assert command.argv == ("torchrun", "run_clm.py", f"{folder}/args.json")
    assert json.loads(command.files[0].text) == {
        "per_device_train_batch_size": 8,
        "output_dir": "out",
        "gradient_accumulation_steps": 2,
    }
    assert command.files[0].text.startswith('{\n    "per_device_train_batch_size": 8,\n')


@pytest.mark.parametrize("gpus", [0, 1, 2])
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("python -u train.py --bf16 --max_length 4 --bf16 False", None),
        ("accelerate launch --num_processes 2 train.py --x", None),
        ("python -m pkg.train args.json", JSON),
    ],
)
def test_what_was_asked_is_written_as_the_user_wrote_it(
    bench: Callable[..., Any], folder: str, gpus: int, argv: str, text: str | None
) -> None:
    table = bench(HFTrainer(), gpus=gpus)
    job = table.job(argv, text, "args.json")
    command = table.adapter.write(job, job.asked, folder)
    assert command.argv == tuple(argv.replace("args.json", f"{folder}/args.json").split())
    assert [file.text for file in command.files] == ([text] if text else [])
    assert command.env == {}


def test_a_flat_yaml_that_fits_as_asked_stays_as_it_is(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(HFTrainer())
    job = table.job("python train.py", TEXT)
    command = table.adapter.write(job, job.asked, folder)
    assert command.argv == job.argv == ("python", "train.py", *FLAGS)
    assert command.files[0].text == TEXT


@pytest.mark.parametrize(
    ("argv", "head"),
    [
        ("python -u train.py", "python -u -m torch.distributed.run {} train.py"),
        ("python -m pkg.train", "python -m torch.distributed.run {} -m pkg.train"),
        ("./train.py", "python -m torch.distributed.run {} ./train.py"),
        ("torchrun --nproc-per-node 2 train.py", "torchrun --nproc-per-node 2 train.py"),
    ],
)
def test_zero3_brings_its_file_and_a_launcher(
    bench: Callable[..., Any], folder: str, argv: str, head: str
) -> None:
    table = bench(HFTrainer(), gpus=2)
    job = table.job(f"{argv} --max_length 8")
    plan = replace(job.asked, sharding=Sharding.ZERO3)
    command = table.adapter.write(job, plan, folder)
    zero = command.files[0].path
    words = head.format("--standalone --nproc-per-node=2").split()
    assert command.argv == (*words, "--max_length", "8", "--deepspeed", zero)
    again = table.reread(job, command)
    assert again.asked == plan
    assert again.global_batch == job.global_batch == 16


@pytest.mark.parametrize(
    ("flags", "change", "message"),
    [
        (
            "--use_peft False --load_in_4bit False",
            {"quantization": Quantization.NF4_DOUBLE},
            "purely quantized models",
        ),
        ("--load_in_4bit", {"sharding": Sharding.ZERO3}, "not compatible with passing"),
        ("--low_cpu_mem_usage", {"sharding": Sharding.ZERO3}, "`low_cpu_mem_usage=True`"),
        ("--auto_find_batch_size", {"sharding": Sharding.ZERO3}, "`auto_find_batch_size` isn't"),
        (
            "--lora_r 8",
            {"quantization": Quantization.NF4},
            "no setting for quantization 'nf4'",
        ),
        (
            "--load_in_4bit False --lora_r 8",
            {"quantization": Quantization.INT8},
            "no setting for quantization 'int8'",
        ),
        ("", {"sequence_length": 5}, "no setting for sequence_length 5"),
        ("--use_peft", {"tuning": Tuning.FULL}, "no setting for tuning 'full'"),
        ("", {"precision": Precision.BF16_TRUE}, "no setting for precision 'bf16-true'"),
        ("--deepspeed gone.json", {"sharding": Sharding.ZERO3}, "file was not found"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    read: Callable[..., Job], flags: str, change: dict[str, Any], message: str
) -> None:
    job = read(f"python train.py {flags}")
    assert HFTrainer().refusal(job, job.asked) is None
    assert message in (HFTrainer().refusal(job, replace(job.asked, **change)) or "")


def test_what_a_plan_needs(read: Callable[..., Job]) -> None:
    job = read("python train.py --load_in_4bit False")
    plan = replace(job.asked, quantization=Quantization.NF4_DOUBLE, sharding=Sharding.ZERO2)
    assert HFTrainer().required_packages(job, plan) == {"bitsandbytes", "deepspeed"}
    assert HFTrainer().normalize(job, plan) == plan


def test_further_files_are_the_launchers_and_the_script(bench: Callable[..., Any]) -> None:
    table = bench(HFTrainer())
    argv = "accelerate launch --config_file a.yaml train.py --deepspeed z.json"
    assert table.adapter.referenced_files(table.request(argv)) == (
        "/home/me/project/z.json",
        "/home/me/project/a.yaml",
        "/home/me/project/train.py",
    )


def test_a_wrong_flag_is_named(read: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError, match="must be an integer of at least 1, not 'x'") as caught:
        read("python train.py --gradient_accumulation_steps x")
    assert str(caught.value.where) == "command line, key '--gradient_accumulation_steps'"


@pytest.mark.parametrize(
    ("argv", "recognised"),
    [
        ("python train.py", True),
        ("python -m pkg.train", True),
        ("torchrun run_clm.py args.json", True),
        ("python src/train.py x.yaml", False),
        ("python -m llamafactory.cli train x.yaml", False),
        ("python -m litgpt serve", False),
        ("bash train.sh", False),
    ],
)
def test_its_commands_are_recognised(argv: str, recognised: bool) -> None:
    try:
        found = detect_command(tuple(argv.split())).name
    except FrameworkError:
        found = None
    assert (found == "hf_trainer") is recognised


def test_a_bare_file_needs_a_command(bench: Callable[..., Any]) -> None:
    adapter, table = HFTrainer(), bench(HFTrainer())
    flat, args = table.request("x", TEXT).source, table.request("x", JSON, "args.json").source
    command = ("python", "train.py")
    assert adapter.command_for(flat, {}, command) == command
    assert adapter.command_for(args, {}, command) == (*command, "/home/me/project/args.json")
    assert adapter.config_path((*command, "args.json")) == "args.json"
    assert adapter.config_path((*command, "--args", "args.json")) is None
    with pytest.raises(ConfigError, match="which script"):
        adapter.command_for(flat, {}, ())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("python train.py", ("--gradient_checkpointing_kwargs", '{"use_reentrant": false}')),
        ("python train.py --gradient_checkpointing_kwargs {}", ("{}",)),
    ],
)
def test_checkpointing_reaches_an_adapter_behind_a_frozen_embedding(
    read: Callable[..., Job], folder: str, argv: str, words: tuple[str, ...]
) -> None:
    job = read(argv)
    plan = replace(job.asked, checkpointing=True)
    written = HFTrainer().write(job, plan, folder).argv
    assert "--gradient_checkpointing" in written
    assert written.count("--gradient_checkpointing_kwargs") == 1
    assert set(words) <= set(written)


def test_loss_alone_is_refused_where_another_metric_picks_the_best_model(
    read: Callable[..., Job],
) -> None:
    job = read("python train.py --metric_for_best_model accuracy")
    assert HFTrainer().refusal(job, job.asked) is None
    refusal = HFTrainer().refusal(job, replace(job.asked, prediction_loss_only=True))
    assert refusal is not None
    assert "metric_for_best_model" in refusal
    by_loss = read("python train.py --metric_for_best_model eval_loss")
    assert HFTrainer().refusal(by_loss, replace(job.asked, prediction_loss_only=True)) is None


FOUR_BIT = (
    "python train.py --load_in_4bit True --use_peft True --bf16 True"
    " --per_device_train_batch_size 1"
)


@pytest.mark.parametrize(
    ("code", "raises", "adapter_bytes"),
    [
        ("model = prepare_model_for_kbit_training(model)\nget_peft_model(model, lora)", True, 4),
        ("model = get_peft_model(model, lora)", False, 4),
        ("from trl import SFTTrainer\nSFTTrainer(model, peft_config=lora)", False, 2),
    ],
)
def test_a_scripts_code_shows_what_it_raises_to_fp32_over_a_4_bit_base(
    read: Callable[..., Job], code: str, raises: bool, adapter_bytes: int
) -> None:
    job = read(FOUR_BIT, files={f"{CWD}/train.py": code})
    settings = HFTrainer().memory_settings(job)
    assert settings.code.kbit_float32 is raises
    found = stored(job.asked, settings)
    assert (found.base_bytes, found.trained_bytes) == (4 if raises else 2, adapter_bytes)
    assert HFTrainer().unmodelled(job) == ()


@pytest.mark.parametrize("code", [None, "from helpers import build\nTrainer(build())"])
def test_what_a_script_does_not_show_is_counted_as_more_and_named(
    read: Callable[..., Job], code: str | None
) -> None:
    files = {f"{CWD}/train.py": code} if code else {}
    job = read(FOUR_BIT, files=files)
    assert HFTrainer().memory_settings(job).code.kbit_float32
    (found,) = HFTrainer().unmodelled(job)
    assert (found.key, found.direction) == ("script", Direction.LESS)
    plain = read(FOUR_BIT.replace("--load_in_4bit True", ""), files=files)
    assert HFTrainer().unmodelled(plain) == ()


HANDBOOK = """
model_name_or_path: m
use_peft: true
lora_r: 32
bf16: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
output_dir: o
"""


def test_a_yaml_before_all_flags_is_read_and_written(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(HFTrainer())
    argv = "torchrun --nproc_per_node 2 run_dpo.py train.yaml --lora_r=8"
    assert detect_command(tuple(argv.split())).name == "hf_trainer"
    assert table.adapter.config_path(tuple(argv.split())) == "train.yaml"
    job = table.job(argv, HANDBOOK)
    assert (job.asked.micro_batch, job.asked.accumulation, job.asked.lora_rank) == (2, 4, 8)
    command = table.adapter.write(job, replace(job.asked, micro_batch=1, accumulation=8), folder)
    assert command.argv[-2:] == (f"{folder}/train.yaml", "--lora_r=8")
    assert "per_device_train_batch_size: 1\n" in command.files[0].text
    assert table.reread(job, command).asked.micro_batch == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: m\noutput_dir: o\n", "states base_model"),
        (HANDBOOK + "finetuning_type: lora\n", "states finetuning_type"),
        ("experiment: a\n", "states none of the Trainer's arguments"),
    ],
)
def test_a_yaml_of_another_kind_is_refused(bench: Callable[..., Any], text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bench(HFTrainer()).job("python scripts/finetune.py train.yaml", text)
