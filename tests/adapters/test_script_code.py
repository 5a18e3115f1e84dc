"""What a script's own code sets is named, unless it is what is counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.conftest import CWD
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.job.plan import Precision, Quantization, Tuning
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
        ("BitsAndBytesConfig(load_in_4bit=True)\nTrainer()", "", {"load_in_4bit", "script"}),
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
        # what PEFT's preparation switches on
        ("Trainer(prepare_model_for_kbit_training(m))", "--load_in_4bit",
         {"gradient_checkpointing"}),
        ("Trainer(prepare_model_for_kbit_training(m, False))", "--load_in_4bit", set()),
        ("Trainer(prepare_model_for_kbit_training(m, use_gradient_checkpointing=False))",
         "--load_in_4bit", set()),
        ("Trainer(prepare_model_for_kbit_training(m, args.gradient_checkpointing))",
         "--load_in_4bit", set()),
        ("Trainer(prepare_model_for_kbit_training(m, False))", "",
         {"prepare_model_for_kbit_training"}),
        ("# prepare_model_for_kbit_training(m)\nTrainer()", "", set()),
        ("if a:\n    prepare_model_for_kbit_training(m, False)\nTrainer()", "", set()),
        # TRL's configs, whose defaults are others
        ("SFTConfig('o')", "", {"script"}),
        ("AsyncGRPOConfig('o')", "", {"script"}),
        ("ServerDistillationConfig('o')", "", {"script"}),
        ("AsyncGRPOConfig('o')", "--bf16 --gradient_checkpointing", set()),
        # a library that changes the model
        ("from unsloth import FastLanguageModel\nTrainer()", "", {"unsloth"}),
        ("import unsloth\nTrainer()", "", {"unsloth"}),
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
def test_a_value_of_the_code_is_named_as_read_or_as_not_counted(
    bench: Callable[..., Any], code: str, flags: str, keys: set[str]
) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    job = table.job(f"python train.py {FLAGS} {flags}")
    notes = HFTrainer().notes(job)
    read = set(re.findall(r"(\w+) \(line \d+\)", notes[0])) if notes else set()
    unread = {one.key for one in HFTrainer().unmodelled(job)}
    assert read | unread == keys


@pytest.mark.parametrize(
    "code",
    [
        "TrainingArguments(fsdp={[]: 1})",
        "TrainingArguments('\\d', bf16=True)",
        "p.add_argument('--a', action=[1])\np.add_argument(*b, action='store_true')",
        "p.add_argument(1, default={})\nGRPOTrainer(model=args.x)\nTrainer(model=None)",
        "x = " + "(" * 500 + ")" * 500,
        "TrainingArguments(optim=" + "-" * 3000 + "1)",
        "\0",
        "\ud800",
    ],
)
def test_a_script_may_hold_anything(
    named: Callable[..., dict[str, Unmodelled]], code: str, recwarn: pytest.WarningsRecorder
) -> None:
    named(code)
    assert not recwarn.list


def test_the_value_and_the_line_are_stated(named: Callable[..., dict[str, Unmodelled]]) -> None:
    assert "optim" not in named("TrainingArguments('o', optim='adafactor')")
    branch = "import torch\nif torch:\n    TrainingArguments(\n        optim='adafactor',\n    )\n"
    effect = "the script sets it to adafactor in its line 4, in a branch: counted as taken"
    assert named(branch)["optim"].effect == effect
    entry = "if __name__ == '__main__':\n    TrainingArguments(optim='adafactor')"
    assert "optim" not in named(entry)
    computed = named("TrainingArguments(optim=choose())")["optim"].effect
    assert computed == "the script sets it in its line 1, which is not counted"
    against = named("TrainingArguments(bf16=False)", "--bf16")["bf16"].effect
    assert against == "the script sets it to False in its line 1, which is not counted"


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


WHOLE = """
MODEL = "meta-llama/Llama-2-7b-hf"
BATCH = 2
bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True,
                         bnb_4bit_quant_type="nf4")
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=bnb)
lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
model = get_peft_model(model, lora)
args = TrainingArguments("out", per_device_train_batch_size=BATCH, bf16=True, optim="adafactor")
args.gradient_checkpointing = True
Trainer(model, args).train()
"""


def test_what_a_script_states_in_its_code_alone_is_planned(bench: Callable[..., Any]) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": WHOLE})
    job = table.job("python train.py")
    asked, settings = job.asked, HFTrainer().memory_settings(job)
    assert (asked.micro_batch, asked.precision, asked.optimizer) == (
        2, Precision.BF16_MIXED, "adafactor",
    )  # fmt: skip
    assert (asked.tuning, asked.lora_rank, asked.checkpointing) == (Tuning.LORA, 16, True)
    assert asked.quantization is Quantization.NF4_DOUBLE
    assert settings.model == "meta-llama/Llama-2-7b-hf"
    assert settings.lora is not None
    assert (settings.lora.targets, settings.lora.alpha) == (("q_proj", "v_proj"), 32)


def test_what_the_code_sets_is_never_written(bench: Callable[..., Any], folder: str) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": WHOLE})
    job = table.job("python train.py --bf16 True")
    command = table.adapter.write(job, replace(job.asked, micro_batch=1, accumulation=2), folder)
    assert command.argv == (
        *("python", "train.py", "--bf16", "True", "--per_device_train_batch_size", "1"),
        *("--gradient_accumulation_steps", "2"),
    )


@pytest.mark.parametrize(
    ("code", "flags", "tuning"),
    [
        ("LoraConfig(r=8)\nget_peft_model(m)", "", Tuning.LORA),
        ("if args.use_lora:\n    LoraConfig(r=8)\n    get_peft_model(m)", "", Tuning.FULL),
        ("if args.use_lora:\n    LoraConfig(r=8)", "--use_lora True", Tuning.LORA),
        ("LoraConfig(r=args.rank)", "", None),
        ("A = LoraConfig(r=8)\nB = LoraConfig(r=64)", "", None),
    ],
)
def test_an_adapter_of_the_code_counts_where_no_flag_hangs_on_it(
    bench: Callable[..., Any], code: str, flags: str, tuning: Tuning | None
) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    assert table.job(f"python train.py {FLAGS} {flags}").asked.tuning is tuning


OWN = """
parser = argparse.ArgumentParser()
parser.add_argument("--model_path", default="a/default")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--rank", type=int, default=16)
args = parser.parse_args()
model = AutoModelForCausalLM.from_pretrained(args.model_path)
model = get_peft_model(model, LoraConfig(r=args.rank, target_modules=["q_proj"]))
Trainer(model, TrainingArguments("o", per_device_train_batch_size=args.batch_size)).train()
"""


@pytest.mark.parametrize(
    ("flags", "model", "batch", "rank"),
    [
        ("", "a/default", 4, 16),
        ("--model_path b/c --batch-size 2", "b/c", 2, 16),
        ("--batch-size=3 --rank 8", "a/default", 3, 8),
    ],
)
def test_a_setting_taken_from_a_flag_of_another_name_is_read(
    bench: Callable[..., Any], flags: str, model: str, batch: int, rank: int
) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": OWN})
    job = table.job(f"python train.py {flags}")
    assert HFTrainer().memory_settings(job).model == model
    assert (job.asked.micro_batch, job.asked.lora_rank) == (batch, rank)
    assert HFTrainer().unmodelled(job) == ()


@pytest.mark.parametrize(
    "code", ["AutoModel.from_pretrained(args.{})", "GRPOTrainer(model=args.{})"]
)
@pytest.mark.parametrize("flag", ["model", "model_name", "model-id", "base_model", "checkpoint"])
def test_a_models_flag_may_have_a_default(bench: Callable[..., Any], code: str, flag: str) -> None:
    declared = f"parser.add_argument('--{flag}', default='m')\n"
    used = code.format(flag.replace("-", "_"))
    table = bench(HFTrainer(), files={f"{CWD}/train.py": declared + used})
    assert HFTrainer().memory_settings(table.job("python train.py")).model == "m"
    stated = HFTrainer().memory_settings(table.job(f"python train.py --{flag} other"))
    assert stated.model == "other"


@pytest.mark.parametrize(
    ("action", "flags", "precision", "keys"),
    [
        ("store_true", "", Precision.FP32, []),
        ("store_true", "--half", Precision.BF16_MIXED, []),
        ("store_false", "", Precision.BF16_MIXED, []),
        ("store_false", "--half", Precision.FP32, ["bf16"]),
    ],
)
def test_a_switch_of_a_scripts_own_is_read(
    bench: Callable[..., Any], action: str, flags: str, precision: Precision, keys: list[str]
) -> None:
    code = f"p.add_argument('--half', action='{action}')\nTrainingArguments('o', bf16=args.half)"
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    job = table.job(f"python train.py {FLAGS} {flags}")
    assert job.asked.precision is precision
    assert [one.key for one in HFTrainer().unmodelled(job)] == keys


def test_a_length_that_another_name_gives_is_read(bench: Callable[..., Any]) -> None:
    code = (
        "p.add_argument('--max_seq_length', default=512)\nSFTConfig(max_length=args.max_seq_length)"
    )
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    for flags, tokens in (("", 512), ("--max_seq_length 64", 64)):
        assert table.job(f"python train.py {FLAGS} {flags}").asked.sequence_length == tokens


@pytest.mark.parametrize("how", ["'m'", "model_name='m'", "pretrained_model_name_or_path='m'"])
def test_a_model_that_is_named_in_the_call_is_read(bench: Callable[..., Any], how: str) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": f"AutoModel.from_pretrained({how})"})
    assert HFTrainer().memory_settings(table.job("python train.py")).model == "m"


@pytest.mark.parametrize(
    "code",
    [
        "A.from_pretrained('a', dtype=torch.half)\nB.from_pretrained('b', dtype=torch.bfloat16)",
        "N = 'a'\nN = 'b'\nAutoModelForCausalLM.from_pretrained(N)",
        "def load(n='a'):\n    return AutoModelForCausalLM.from_pretrained(n)",
        "AutoTokenizer.from_pretrained('a')\nTrainer()",
    ],
)
def test_which_model_is_trained_is_not_guessed(bench: Callable[..., Any], code: str) -> None:
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    found = HFTrainer().memory_settings(table.job("python train.py"))
    assert (found.model, found.base) == (None, None)


def test_a_batch_that_only_the_code_sets_cannot_be_changed(bench: Callable[..., Any]) -> None:
    code = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--x')\n"
        "args = parser.parse_args()\nTrainingArguments('o', per_device_train_batch_size=4)\n"
    )
    table = bench(HFTrainer(), files={f"{CWD}/train.py": code})
    (said,) = HFTrainer().warnings(table.job("python train.py"))
    assert said.endswith("(its own flags: --x): its batch of 4 is read and left as it is")
