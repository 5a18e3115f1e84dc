"""DeepSpeed's and accelerate's configs as documents that frameworks share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from oomguard.adapters.hf import accelerate, deepspeed
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.configfile.document import Document, Source
from oomguard.job.plan import Offload, Plan, Quantization, Sharding

TEXT = """\
{
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto"}
    },

    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none", "pin_memory": true},
        "reduce_bucket_size": 2e8
    },
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": "auto"
}
"""
ZERO2 = Plan(
    micro_batch=4,
    accumulation=2,
    sharding=Sharding.ZERO2,
    offload=frozenset(),
    optimizer="adamw_torch",
)
BOTH = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})


def edited(text: str = TEXT, **change: Any) -> str:
    document = Document.parse(Source(path="/z.json", text=text))
    return deepspeed.edited(document, ZERO2, replace(ZERO2, **change)).text


def test_what_need_not_change_stays_byte_for_byte() -> None:
    assert edited() == TEXT


def test_a_stage_and_an_offload_are_edited_in_place() -> None:
    text = edited(sharding=Sharding.ZERO3, offload=BOTH)
    zero = json.loads(text)["zero_optimization"]
    assert zero == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": 2e8,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_param": {"device": "cpu", "pin_memory": True},
    }
    assert '"reduce_bucket_size": 2e8' in text
    assert json.loads(text)["train_batch_size"] == 8


@pytest.mark.parametrize("stage", [Sharding.ZERO2, Sharding.ZERO3])
def test_a_config_of_our_own_reduces_no_more_at_a_time_than_the_model_asks_for(stage) -> None:
    config = json.loads(deepspeed.zero_config(stage, frozenset()))
    assert config["zero_optimization"]["reduce_bucket_size"] == "auto"
    assert deepspeed.reduce_bucket(config) is None


@pytest.mark.parametrize(
    ("block", "size"),
    [('"stage": 2', 500_000_000), ('"reduce_bucket_size": 2e8', 200_000_000)],
)
def test_the_bucket_of_a_users_config_is_the_one_it_states_or_deepspeeds(block, size) -> None:
    text = f'{{"zero_optimization": {{{block}}}}}'
    for values in (json.loads(text), Document.parse(Source(path="/z.json", text=text)).values):
        assert deepspeed.reduce_bucket(values) == size


@pytest.mark.parametrize(
    ("block", "two"), [('"stage": 2', False), ('"stage": 2, "overlap_comm": true', True)]
)
def test_a_config_that_reduces_beside_the_backward_pass_has_two_buckets(block, two) -> None:
    assert deepspeed.overlap_comm(json.loads(f'{{"zero_optimization": {{{block}}}}}')) is two


def test_an_offload_is_taken_back() -> None:
    on = TEXT.replace('"none"', '"cpu"')
    document = Document.parse(Source(path="/z.json", text=on))
    asked = replace(ZERO2, offload=frozenset({Offload.OPTIMIZER}))
    assert deepspeed.edited(document, asked, ZERO2).text == TEXT


def test_the_old_spelling_of_offload_is_replaced() -> None:
    text = '{"zero_optimization": {"stage": 2, "cpu_offload": true}}'
    document = Document.parse(Source(path="/z.json", text=text))
    asked = replace(ZERO2, offload=frozenset({Offload.OPTIMIZER}))
    after = deepspeed.edited(document, asked, replace(asked, sharding=Sharding.ZERO3))
    assert deepspeed.zero_of(after.values) == (Sharding.ZERO3, frozenset({Offload.OPTIMIZER}))
    assert after.get("zero_optimization.cpu_offload") is False


def test_a_new_batch_frees_fixed_numbers_alone() -> None:
    text = edited(micro_batch=2, accumulation=4)
    assert text == TEXT.replace('"train_batch_size": 8', '"train_batch_size": "auto"')


def test_a_new_optimizer_takes_the_block_away_and_nothing_else() -> None:
    text = edited(optimizer="adamw_bnb_8bit")
    assert json.loads(text) == {k: v for k, v in json.loads(TEXT).items() if k != "optimizer"}
    assert text == TEXT[:2] + TEXT[TEXT.index('\n    "zero_opt') :]


def test_an_inline_config_becomes_a_file(bench: Callable[..., Any], folder: str) -> None:
    table = bench(HFTrainer(), gpus=2)
    inline = {"zero_optimization": {"stage": 2}, "steps_per_print": 7}
    text = json.dumps({"deepspeed": inline, "output_dir": "o"})
    job = table.job("torchrun train.py a.json", text, "a.json")
    assert job.asked.sharding is Sharding.ZERO2
    assert table.adapter.write(job, job.asked, folder).files[0].text == text
    plan = replace(job.asked, sharding=Sharding.ZERO3)
    command = table.adapter.write(job, plan, folder)
    assert json.loads(command.files[0].text)["steps_per_print"] == 7
    assert table.reread(job, command).asked == plan


CONFIG = "distributed_type: DEEPSPEED  # kept\ndeepspeed_config: {zero_stage: 2}\n"


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, "", (Sharding.NONE, frozenset())),
        ({}, "distributed_type: MULTI_GPU", (Sharding.NONE, frozenset())),
        ({}, "distributed_type: FSDP", (Sharding.FSDP, frozenset())),
        ({"use_fsdp": ""}, "", (Sharding.FSDP, frozenset())),
        ({}, CONFIG, (Sharding.ZERO2, frozenset())),
        ({"use_deepspeed": ""}, "", (Sharding.ZERO2, frozenset())),
        ({"zero_stage": "3"}, CONFIG, (Sharding.ZERO3, frozenset())),
        (
            {"offload_param_device": "cpu", "zero_stage": "3"},
            CONFIG,
            (Sharding.ZERO3, frozenset({Offload.PARAMETERS})),
        ),
        ({"deepspeed_config_file": "gone"}, CONFIG, (None, None)),
        ({"deepspeed_config_file": "zero3.json"}, CONFIG, (Sharding.ZERO3, frozenset())),
        (
            {"use_deepspeed": ""},
            "deepspeed_config: {deepspeed_config_file: zero3.json}",
            (Sharding.ZERO3, frozenset()),
        ),
        ({}, "deepspeed_config: {deepspeed_config_file: zero3.json}", (Sharding.NONE, frozenset())),
    ],
)
def test_accelerates_words_beat_its_file(
    options: dict[str, str], text: str, expected: object
) -> None:
    files = {"zero3.json": json.dumps({"zero_optimization": {"stage": 3}})}
    config = yaml.safe_load(text) or {}
    named = accelerate.deepspeed_file(options, config)
    zero = deepspeed.config_in(files, named)
    assert accelerate.sharding(options, config, zero) == expected


def test_accelerates_file_is_edited_and_named_by_its_option(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(HFTrainer(), gpus=2, files={"/home/me/project/acc.yaml": CONFIG})
    job = table.job("accelerate launch --config_file acc.yaml --num_processes 2 train.py --x 1")
    assert table.adapter.write(job, job.asked, folder).argv == job.argv
    plan = replace(job.asked, sharding=Sharding.ZERO3, offload=BOTH)
    command = table.adapter.write(job, plan, folder)
    expected = (
        f"accelerate launch --config_file {folder}/accelerate.yaml --num_processes 2 train.py"
    )
    assert command.argv == (*expected.split(), "--x", "1")
    assert command.files[0].text.startswith("distributed_type: DEEPSPEED  # kept\n")
    assert table.reread(job, command).asked == plan
    off = table.adapter.write(job, replace(job.asked, sharding=Sharding.NONE), folder)
    assert yaml.safe_load(off.files[0].text)["distributed_type"] == "MULTI_GPU"


FOLLOWED = "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: zero.json}\n"
ZERO_FILE = """{
  "train_micro_batch_size_per_gpu": 8,
  "gradient_accumulation_steps": 4,
  "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
  "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}
}
"""


@pytest.mark.parametrize(
    "argv",
    [
        "accelerate launch --config_file acc.yaml --num_processes 2 train.py --x 1",
        "accelerate launch --use_deepspeed --deepspeed_config_file zero.json train.py --x 1",
    ],
)
def test_the_deepspeed_file_that_accelerate_names_is_followed(
    bench: Callable[..., Any], folder: str, argv: str
) -> None:
    cwd = "/home/me/project"
    own = {f"{cwd}/acc.yaml": FOLLOWED, f"{cwd}/zero.json": ZERO_FILE}
    table = bench(HFTrainer(), gpus=2, files=own)
    assert f"{cwd}/zero.json" in table.adapter.referenced_files(table.request(argv))
    job = table.job(argv)
    assert (job.asked.sharding, job.asked.optimizer) == (Sharding.ZERO2, "adamw_torch")
    assert table.adapter.write(job, job.asked, folder).argv == job.argv
    plan = replace(
        job.asked, micro_batch=4, accumulation=2, sharding=Sharding.ZERO3, optimizer="adamw_8bit"
    )
    assert table.adapter.refusal(job, plan) is None
    command = table.adapter.write(job, plan, folder)
    (zero,) = [json.loads(f.text) for f in command.files if f.path.endswith(".json")]
    assert zero["train_micro_batch_size_per_gpu"] == zero["gradient_accumulation_steps"] == "auto"
    assert (zero["zero_optimization"]["stage"], "optimizer" in zero) == (3, False)
    assert zero["zero_optimization"]["reduce_bucket_size"] == 1000
    assert table.reread(job, command).asked == plan


def test_accelerates_file_for_llamafactory_is_read_and_not_fought(
    bench: Callable[..., Any],
) -> None:
    table = bench(
        LlamaFactory(),
        gpus=2,
        files={"/home/me/project/acc.yaml": "distributed_type: FSDP\nnum_processes: 2\n"},
    )
    argv = "accelerate launch --config_file acc.yaml src/train.py train.yaml"
    job = table.job(argv, "model_name_or_path: m\n")
    assert job.asked.sharding is Sharding.FSDP
    refusal = table.adapter.refusal(job, replace(job.asked, quantization=Quantization.INT8))
    assert refusal == "Only 4-bit quantized model can use fsdp+qlora or auto device map."
    assert table.adapter.refusal(job, replace(job.asked, sharding=Sharding.ZERO3)) is not None


def test_a_word_of_the_launcher_is_not_fought(bench: Callable[..., Any]) -> None:
    job = bench(HFTrainer(), gpus=2).job("accelerate launch --use_deepspeed train.py")
    refusal = HFTrainer().refusal(job, replace(job.asked, sharding=Sharding.ZERO3))
    assert refusal == "accelerate launch --use_deepspeed decides over the sharding"
