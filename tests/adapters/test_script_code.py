"""What a script's own code sets is named, unless it is what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters.conftest import CWD
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.job.unmodelled import Unmodelled

FLAGS = "--model_name_or_path m --per_device_train_batch_size 8"
PARSED = "args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"


@pytest.fixture
def named(bench: Callable[..., Any]) -> Callable[..., dict[str, Unmodelled]]:
    def run(code: str, flags: str = "", script: str = "train.py") -> dict[str, Unmodelled]:
        table = bench(HFTrainer(), files={f"{CWD}/{script}": code} if code else {})
        job = table.job(f"python {script} {FLAGS} {flags}")
        return {one.key: one for one in HFTrainer().unmodelled(job)}

    return run


@pytest.mark.parametrize(
    ("code", "flags", "keys"),
    [
        # arguments that a call states
        ("TrainingArguments('o', bf16=True)", "", {"bf16"}),
        ("TrainingArguments('o', bf16=True)", "--bf16", set()),
        ("TrainingArguments('o', bf16=False)", "--bf16", {"bf16"}),
        ("TrainingArguments('o', fp16=False, optim='adamw_torch_fused')", "", set()),
        ("transformers.TrainingArguments(optim='adafactor')", "", {"optim"}),
        ("DPOConfig(max_length=512, bf16=a.bf16, gradient_checkpointing=a.gradient_checkpointing)",
         "--bf16 --gradient_checkpointing", {"max_length"}),
        ("SFTConfig(max_length=args.max_seq_length, packing=flags['packing'])",
         "--bf16 --gradient_checkpointing", set()),
        ("TrainingArguments(per_device_train_batch_size=args.batch)", "",
         {"per_device_train_batch_size"}),
        ("TrainingArguments(deepspeed='ds.json', fsdp='full_shard')", "", {"deepspeed", "fsdp"}),
        # what loads the model
        ("BitsAndBytesConfig(load_in_4bit=True)\nTrainer()", "", {"load_in_4bit"}),
        ("AutoModelForCausalLM.from_pretrained(n, torch_dtype=torch.bfloat16)", "",
         {"torch_dtype"}),
        ("AutoModelForCausalLM.from_pretrained(n, torch_dtype=torch.bfloat16)",
         "--torch_dtype bfloat16", set()),
        ("AutoModelForCausalLM.from_pretrained(n, dtype=dtype, device_map='auto')", "", set()),
        ("AutoModel.from_pretrained(n, attn_implementation='eager')", "",
         {"attn_implementation"}),
        ("AutoModel.from_pretrained(n, attn_implementation='flash_attention_2')", "", set()),
        # what is set later
        (PARSED + "args.gradient_checkpointing = True", "", {"gradient_checkpointing"}),
        (PARSED + "model.gradient_checkpointing_enable()", "", {"gradient_checkpointing"}),
        (PARSED + "model.gradient_checkpointing_enable()", "--gradient_checkpointing", set()),
        # its own defaults, which flags go before
        ("class TrainArgs(TrainingArguments):\n    bf16: bool = field(default=True)", "", {"bf16"}),
        ("class TrainArgs(TrainingArguments):\n    bf16: bool = True", "--bf16 False", set()),
        ("parser = ArgumentParser()\nparser.add_argument('--optim', default='lion')", "",
         {"optim"}),
        ("parser = ArgumentParser()\nparser.add_argument('--optim', default='lion')",
         "--optim adafactor", set()),
        # no settings of a training
        ("LoraConfig(r=8)\nGenerationConfig(max_length=9)\nAutoConfig(dtype='x')", "--lora_r 8",
         set()),
        ("tokenizer(text, max_length=512)\nTrainer()", "", set()),
        ("this is not python: Trainer", "", set()),
    ],
)  # fmt: skip
def test_a_value_of_the_code_that_is_not_counted_is_named(
    named: Callable[..., dict[str, Unmodelled]], code: str, flags: str, keys: set[str]
) -> None:
    assert named(code, flags).keys() == keys


def test_the_value_and_the_line_are_stated(named: Callable[..., dict[str, Unmodelled]]) -> None:
    found = named("import torch\nTrainingArguments(\n    'o',\n    optim='adafactor',\n)\n")
    effect = "the script sets it to adafactor in its line 4, which is not counted"
    assert found["optim"].effect == effect


@pytest.mark.parametrize(
    ("script", "code", "flags", "is_named"),
    [
        ("train_qlora.py", "", "", True),
        ("finetune_4bit.py", "", "", True),
        ("train_qlora.py", "", "--load_in_4bit --use_peft", False),
        ("train_qlora.py", "Trainer(model)", "", False),
        ("train.py", "", "", False),
        ("train_mem.py", "from llava.train.train import train\ntrain()\n", "", True),
    ],
)
def test_a_script_that_hides_what_it_does_is_named(
    named: Callable[..., dict[str, Unmodelled]], script: str, code: str, flags: str, is_named: bool
) -> None:
    found = named(code, flags, script)
    hidden = [one for key, one in found.items() if key == "script" and "kbit" not in one.effect]
    assert bool(hidden) is is_named


@pytest.mark.parametrize("launch", ["accelerate launch --config_file acc.yaml train.py"])
def test_a_config_of_accelerate_that_is_not_there_is_named(
    bench: Callable[..., Any], launch: str
) -> None:
    table = bench(HFTrainer(), gpus=2)
    keys = [one.key for one in HFTrainer().unmodelled(table.job(f"{launch} {FLAGS}"))]
    assert keys == ["config_file"]
    there = bench(HFTrainer(), gpus=2, files={f"{CWD}/acc.yaml": "distributed_type: MULTI_GPU\n"})
    assert HFTrainer().unmodelled(there.job(f"{launch} {FLAGS}")) == ()


@pytest.mark.parametrize("argv", ["python train.py", "python train.py train.yaml"])
def test_what_a_file_states_is_named_as_a_flag_is(bench: Callable[..., Any], argv: str) -> None:
    text = "model_name_or_path: m\nper_device_train_batch_size: 1\nlora_enable: true\n"
    job = bench(HFTrainer()).job(argv, text)
    (found,) = HFTrainer().unmodelled(job)
    assert (found.key, found.line) == ("lora_enable", 3)


@pytest.mark.parametrize(
    "flag", ["--tp 4", "--context_parallel_size 2", "--use_liger", "--cross_entropy_impl cce"]
)
def test_parallelism_and_losses_of_a_scripts_own_are_named(
    named: Callable[..., dict[str, Unmodelled]], flag: str
) -> None:
    assert named("", flag).keys() == {flag.split(maxsplit=1)[0].removeprefix("--")}
