"""What the frameworks are known to refuse: each is never written by a walk, or is recognised.

Each row gives the framework's own sentence. For one that is never written, `broken` tells it from
the command and the files alone, by no rule of an adapter's; `by_hand` is what a user would write
to meet it, so that no rule is empty. The others end a rung with an explanation and not the run
(`oomguard.evidence.refusals`), or are said before anything is started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import yaml

from adapters.conftest import CWD, FOLDER, Bench
from adapters.test_walks import AXO, LF, LIT, LOFTQ, QWEN, SWIFT, TRL, TUNE, ladder_of
from generators import Walk
from oomguard.adapters.registry import adapter_named
from oomguard.errors import ConfigError
from oomguard.evidence.refusals import is_refusal
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.checkpoint import Mode
from oomguard.job.command import Command
from oomguard.job.plan import Offload, Quantization, Sharding
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Job

Seen = Mapping[str, object]
DEVICE = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
HOST = Verdict(kind=Kind.HOST_OOM, phase=Phase.LOAD)
FULL = "finetuning_type: full\n"
ZERO2 = {f"{CWD}/z.json": json.dumps({"zero_optimization": {"stage": 2}})}
NUMBERS = {
    f"{CWD}/z.json": json.dumps(
        {
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
            "train_micro_batch_size_per_gpu": 8,
            "zero_optimization": {"stage": 2},
        }
    )
}
PEFT, RANK = TRL + "use_peft: true\n", "batch_size: 8\n"
LMF = "lmf train train.yaml"
LITGPT = "litgpt finetune_lora --config train.yaml"
TUNE_LORA = "tune run lora_finetune_single_device --config train.yaml"


@dataclass(frozen=True)
class Sample:
    """A job as a user has it, and the surroundings that bring it near a refusal."""

    name: str
    argv: str
    text: str | None = None
    gpus: tuple[int, ...] = (1, 2)
    files: dict[str, str] = field(default_factory=dict)
    stored_as: StoredFormat | None = None


GPTQ = StoredFormat(method="gptq", described="gptq", quantization=Quantization.PREQUANTIZED)
SAMPLES = {
    "lf-lora": Sample("llamafactory", LMF, LF),
    "lf-full": Sample("llamafactory", LMF, LF + FULL),
    "lf-freeze": Sample("llamafactory", LMF, LF + "finetuning_type: freeze\n"),
    "lf-new-tokens": Sample("llamafactory", LMF, LF + "add_special_tokens: a,b\n"),
    "lf-8-bit": Sample("llamafactory", LMF, LF + "quantization_bit: 8\n"),
    "lf-gptq": Sample(
        "llamafactory", LMF, LF.replace("Instruct", "Instruct-GPTQ-Int4"), stored_as=GPTQ
    ),
    "lf-galore": Sample("llamafactory", LMF, LF + FULL + "use_galore: true\n"),
    "lf-unsloth": Sample("llamafactory", LMF, LF + "use_unsloth: true\n"),
    "lf-pure": Sample("llamafactory", LMF, LF + FULL + "pure_bf16: true\n"),
    "lf-pixels": Sample("llamafactory", LMF, LF + "image_min_pixels: 200000\n"),
    "lf-tokenized": Sample("llamafactory", LMF, LF + "tokenized_path: t\n"),
    "lf-fsdp": Sample(
        "llamafactory",
        "accelerate launch --config_file acc.yaml src/train.py train.yaml",
        LF,
        files={f"{CWD}/acc.yaml": "distributed_type: FSDP\nnum_processes: 2\n"},
    ),
    "litgpt": Sample("litgpt", LITGPT, LIT, gpus=(0, 1)),
    "litgpt-two": Sample("litgpt", LITGPT, LIT.replace("size: 4", "size: 6") + "devices: 2\n"),
    "litgpt-full": Sample("litgpt", LITGPT.replace("lora", "full"), LIT.replace("lora_r: 4\n", "")),
    "qwen-base": Sample("qwen", f"{QWEN} --use_lora --bf16 True --deepspeed z.json", files=ZERO2),
    "qwen-gptq": Sample("qwen", f"{QWEN} --use_lora --q_lora --fp16 True"),
    "qwen-full": Sample("qwen", f"{QWEN} --deepspeed z.json", files=NUMBERS),
    "hf": Sample("hf_trainer", "torchrun --nproc_per_node 2 train.py --max_length 512"),
    "hf-numbers": Sample(
        "hf_trainer", "torchrun --nproc_per_node 2 train.py --deepspeed z.json", files=NUMBERS
    ),
    "hf-quantizable": Sample(
        "hf_trainer", "torchrun --nproc_per_node 2 train.py --use_peft --load_in_4bit False"
    ),
    "hf-search": Sample("hf_trainer", "python train.py --auto_find_batch_size"),
    "lf-search": Sample("llamafactory", LMF, LF + "auto_find_batch_size: true\n"),
    "hf-low": Sample("hf_trainer", "torchrun --nproc_per_node 2 t.py --low_cpu_mem_usage False"),
    "trl": Sample("trl", "trl sft --config train.yaml", TRL),
    "trl-lora": Sample(
        "trl", "trl sft --config train.yaml --accelerate_config zero2 --use_peft", TRL
    ),
    "loftq": Sample("peft_loftq", LOFTQ),
    "axolotl": Sample(
        "axolotl", "axolotl train train.yaml", AXO + "adapter: lora\nbatch_size: 8\n"
    ),
    "swift": Sample("ms_swift", "swift sft train.yaml", SWIFT),
    "torchtune": Sample("torchtune", TUNE_LORA, TUNE),
    "torchtune-in-backward": Sample("torchtune", TUNE_LORA, TUNE + "optimizer_in_bwd: true\n"),
}


def table_of(sample: Sample, gpus: int) -> tuple[Bench, Job]:
    table = Bench(adapter_named(sample.name), gpus=gpus, files=sample.files)
    job = table.job(sample.argv, sample.text)
    return table, table.adapter.of_model(job, "qwen2", sample.stored_as)


def seen(framework: str, job: Job, command: Command, files: Mapping[str, str]) -> dict[str, Any]:
    """Read what was written as a stranger would: keys and words laid over each other."""
    texts = {**files, **{file.path: file.text for file in command.files}}
    found: dict[str, Any] = {}
    if command.config:
        _flatten("", yaml.safe_load(texts[command.config]), found)
    for word, after in zip(command.argv, (*command.argv[1:], "--"), strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if equals:
            found[name] = yaml.safe_load(value)
        elif word.startswith("--"):
            found[name] = True if after.startswith("--") else yaml.safe_load(after)
    return found | {
        "framework": framework,
        "zero": _zero(found, texts),
        "argv": command.argv,
        "env": command.env,
        "gpus": 0 if job.device.value == "cpu" else job.world.per_node,
    }


def _flatten(prefix: str, value: Mapping[str, object], found: dict[str, Any]) -> None:
    for key, inner in value.items():
        if isinstance(inner, dict):
            _flatten(f"{prefix}{key}.", inner, found)
        found[f"{prefix}{key}"] = inner


def _zero(found: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return DeepSpeed's config with its `stage` (0 without one), wherever it is named."""
    named = found.get("deepspeed")
    own = texts.get(str(named), texts.get(f"{CWD}/{named}", ""))
    if own:
        config = json.loads(own)
        return {**config, "stage": config["zero_optimization"]["stage"]}
    digits = re.findall(r"zero(\d)", str(named or found.get("accelerate_config") or ""))
    text = texts.get(str(found.get("accelerate_config") or found.get("config_file")), "")
    stage = re.search(r"zero_stage: (\d)", text)
    return {"stage": int(stage[1]) if stage else int(digits[0]) if digits else 0}


@cache
def written() -> tuple[tuple[Sample, Job, Seen], ...]:
    """Walk each sample to the end of the ladder, and read every command on the way."""
    return tuple(_written())


def _written() -> Iterator[tuple[Sample, Job, Seen]]:
    for sample in SAMPLES.values():
        for gpus in sample.gpus:
            table, job = table_of(sample, gpus)
            ladder = ladder_of(table.adapter)
            for why in (DEVICE, HOST):
                rungs = Walk(job, ladder).rungs(lambda _, why=why: why)
                for plan in [rung.plan for rung in rungs if rung.plan]:
                    command = table.adapter.write(job, plan, FOLDER)
                    yield sample, job, seen(sample.name, job, command, sample.files)


def stage(c: Seen) -> int:
    zero = c["zero"]
    return zero["stage"] if isinstance(zero, dict) else 0


@dataclass(frozen=True)
class Never:
    """A refusal that no walk runs into: in which frameworks, by which rule, and how to meet it."""

    sentence: str
    frameworks: tuple[str, ...]
    broken: Callable[[Seen], bool]
    by_hand: Mapping[str, object]


def _lora(c: Seen) -> bool:
    return c.get("finetuning_type", "lora") == "lora"


def _new_tokens(c: Seen) -> bool:
    return any(c.get(key) for key in ("add_tokens", "add_special_tokens", "resize_vocab"))


def _mixed(c: Seen) -> bool:
    return str(c.get("precision", "bf16-mixed")).endswith("mixed")


def _floored(c: Seen) -> bool:
    local = int(str(c.get("train.global_batch_size", 16))) // int(str(c.get("devices", 1)))
    return local % int(str(c.get("train.micro_batch_size", 1))) != 0


def _mismatch(c: Seen) -> bool:
    zero = c["zero"]
    micro = zero.get("train_micro_batch_size_per_gpu") if isinstance(zero, dict) else None
    return isinstance(micro, int) and micro != c.get("per_device_train_batch_size", 8)


def _quantized(c: Seen) -> bool:
    return any(c.get(key) is True for key in ("load_in_4bit", "load_in_8bit"))


LFS, LIG, SCRIPTS = ("llamafactory",), ("litgpt",), ("hf_trainer", "qwen", "peft_loftq")
NEVER = (
    Never(
        "Quantization is only compatible with the LoRA or OFT method.",
        LFS,
        lambda c: not _lora(c) and bool(c.get("quantization_bit")),
        {"finetuning_type": "freeze", "quantization_bit": 4},
    ),
    Never(
        "Cannot resize embedding layers of a quantized model.",
        LFS,
        lambda c: _new_tokens(c) and bool(c.get("quantization_bit")),
        {"add_tokens": "a", "quantization_bit": 4},
    ),
    Never(
        "Only 4-bit quantized model can use fsdp+qlora or auto device map.",
        LFS,
        lambda c: (
            c.get("quantization_bit") == 8 and (stage(c) == 3 or "accelerate" in c["argv"])  # type: ignore[operator]
        ),
        {"quantization_bit": 8, "zero": {"stage": 3}},
    ),
    Never(
        "DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models.",
        LFS,
        lambda c: "GPTQ" in str(c.get("model_name_or_path")) and stage(c) == 3,
        {"model_name_or_path": "m-GPTQ", "zero": {"stage": 3}},
    ),
    Never(
        "Bitsandbytes only accepts 4-bit or 8-bit quantization.",
        LFS,
        lambda c: c.get("quantization_bit") not in (None, 4, 8),
        {"quantization_bit": 3},
    ),
    Never(
        "Cannot use LoRA with GaLore, APOLLO or BAdam together.",
        LFS,
        lambda c: _lora(c) and bool(c.get("use_galore")),
        {"use_galore": True},
    ),
    Never(
        "GaLore and APOLLO are incompatible with DeepSpeed yet.",
        LFS,
        lambda c: stage(c) > 0 and bool(c.get("use_galore")),
        {"use_galore": True, "zero": {"stage": 2}},
    ),
    Never(
        "Unsloth is incompatible with DeepSpeed ZeRO-3.",
        LFS,
        lambda c: stage(c) == 3 and bool(c.get("use_unsloth")),
        {"use_unsloth": True, "zero": {"stage": 3}},
    ),
    Never(
        "`pure_bf16` is incompatible with DeepSpeed ZeRO-3.",
        LFS,
        lambda c: stage(c) == 3 and bool(c.get("pure_bf16")),
        {"pure_bf16": True, "zero": {"stage": 3}},
    ),
    Never(
        "Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training.",
        LFS,
        lambda c: (
            stage(c) > 0
            and c["gpus"] == 1
            and c["argv"][0] == "lmf"  # type: ignore[index]
            and c["env"].get("FORCE_TORCHRUN") != "1"  # type: ignore[attr-defined]
        ),
        {"zero": {"stage": 2}, "argv": ("lmf",), "gpus": 1},
    ),
    Never(
        "Some keys are not used by the HfArgumentParser: ['oomguard']",
        LFS,
        lambda c: "oomguard" in c,
        {"oomguard": {}},
    ),
    Never(
        "Loading dataset from disk will ignore other data arguments.",
        LFS,
        lambda c: bool(c.get("tokenized_path")) and "cutoff_len" in c,
        {"tokenized_path": "t", "cutoff_len": 1024},
    ),
    Never(
        "`image_max_pixels` cannot be smaller than `image_min_pixels`.",
        LFS,
        lambda c: (
            int(str(c.get("image_max_pixels", 768**2))) < int(str(c.get("image_min_pixels", 0)))
        ),
        {"image_max_pixels": 1, "image_min_pixels": 2},
    ),
    Never(
        "auto_find_batch_size: the batch goes 4 -> 3 and the global batch with it, unsaid",
        (*LFS, *SCRIPTS, "trl", "axolotl", "ms_swift"),
        lambda c: c.get("auto_find_batch_size") is True,
        {"auto_find_batch_size": True},
    ),
    Never(
        "AssertionError, or a global batch that is floored: the micro batch does not divide it",
        LIG,
        _floored,
        {"train.global_batch_size": 4, "train.micro_batch_size": 3},
    ),
    Never(
        "error: Unrecognized arguments: --gradient_checkpointing",
        LIG,
        lambda c: any("checkpointing" in key or "deepspeed" in key for key in c),
        {"gradient_checkpointing": True},
    ),
    Never(
        "Quantization and mixed precision is not supported.",
        LIG,
        lambda c: bool(c.get("quantize")) and _mixed(c),
        {"quantize": "bnb.nf4"},
    ),
    Never(
        "Quantization is currently not supported for multi-GPU training.",
        LIG,
        lambda c: bool(c.get("quantize")) and int(str(c.get("devices", 1))) > 1,
        {"quantize": "bnb.nf4", "devices": 2},
    ),
    Never(
        "Bitsandbytes is only supported on CUDA GPUs.",
        LIG,
        lambda c: bool(c.get("quantize")) and c["gpus"] == 0,
        {"quantize": "bnb.nf4", "gpus": 0},
    ),
    Never(
        "error: Unrecognized arguments: --quantize",
        LIG,
        lambda c: bool(c.get("quantize")) and "finetune_full" in c["argv"],  # type: ignore[operator]
        {"quantize": "bnb.nf4", "argv": ("litgpt", "finetune_full")},
    ),
    Never(
        "'int8-training' only works with `dtype=torch.float16`",
        LIG,
        lambda c: c.get("quantize") == "bnb.int8-training" and c.get("precision") != "16-true",
        {"quantize": "bnb.int8-training", "precision": "bf16-true"},
    ),
    Never(
        "ZeroDivisionError (lr_warmup_steps: 0)",
        LIG,
        lambda c: c.get("train.lr_warmup_steps") == 0,
        {"train.lr_warmup_steps": 0},
    ),
    Never(
        "ZeRO3 is incompatible with LoRA when finetuning on base model.",
        ("qwen",),
        lambda c: (
            stage(c) == 3
            and c.get("use_lora") is True
            and not c.get("q_lora")
            and "chat" not in str(c.get("model_name_or_path", "")).lower()
        ),
        {"use_lora": True, "zero": {"stage": 3}},
    ),
    Never(
        "DeepSpeed Zero-3 is not compatible with passing a device_map.",
        SCRIPTS,
        lambda c: stage(c) == 3 and (bool(c.get("q_lora")) or _quantized(c)),
        {"q_lora": True, "zero": {"stage": 3}},
    ),
    Never(
        "a GPTQ checkpoint has kernels for fp16 alone, and --q_lora quantizes nothing by itself",
        ("qwen",),
        lambda c: bool(c.get("q_lora")) and c.get("fp16") is not True,
        {"q_lora": True, "bf16": True},
    ),
    Never(
        "--optim is ignored: the DeepSpeed config contains `optimizer`",
        SCRIPTS,
        lambda c: "optim" in c and "optimizer" in c["zero"],  # type: ignore[operator]
        {"optim": "adamw_bnb_8bit", "zero": {"optimizer": {}}},
    ),
    Never(
        "Please correct the following DeepSpeed config values that mismatch TrainingArguments",
        SCRIPTS,
        _mismatch,
        {"per_device_train_batch_size": 4, "zero": {"train_micro_batch_size_per_gpu": 8}},
    ),
    Never(
        "a quantized base under ZeRO-3 can take more memory than either (TRL refuses it not)",
        ("trl",),
        lambda c: stage(c) == 3 and _quantized(c),
        {"load_in_4bit": True, "zero": {"stage": 3}},
    ),
    Never(
        "DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True`",
        ("hf_trainer",),
        lambda c: stage(c) == 3 and c.get("low_cpu_mem_usage") is True,
        {"low_cpu_mem_usage": True, "zero": {"stage": 3}},
    ),
    Never(
        "Only 4 bit quantization supported at the moment. (replace_lora_weights_loftq)",
        ("peft_loftq",),
        lambda c: (
            c.get("staged") is True and (c.get("loftq_bits", 4), c.get("loftq_iter", 1)) != (4, 1)
        ),
        {"staged": True, "loftq_bits": 8},
    ),
    Never(
        "please set only one of gradient_accumulation_steps or batch_size",
        ("axolotl",),
        lambda c: "batch_size" in c and "gradient_accumulation_steps" in c,
        {"batch_size": 8, "gradient_accumulation_steps": 2},
    ),
    Never(
        "without gradient_accumulation_steps ms-swift accumulates to 16 samples",
        ("ms_swift",),
        lambda c: (
            c.get("per_device_train_batch_size") != 4 and "gradient_accumulation_steps" not in c
        ),
        {"per_device_train_batch_size": 2},
    ),
    Never(
        "Gradient accumulation is not supported with optimizer in bwd.",
        ("torchtune",),
        lambda c: (
            c.get("optimizer_in_bwd") is True and c.get("gradient_accumulation_steps", 1) != 1
        ),
        {"optimizer_in_bwd": True, "gradient_accumulation_steps": 2},
    ),
    Never(
        "enable_activation_offloading should only be True when enable_activation_checkpointing is "
        "True",
        ("torchtune",),
        lambda c: (
            c.get("enable_activation_offloading") is True
            and c.get("enable_activation_checkpointing") is not True
        ),
        {"enable_activation_offloading": True},
    ),
)


@pytest.mark.parametrize("row", NEVER, ids=lambda row: row.sentence[:60])
def test_a_refusal_is_never_written_by_a_walk(row: Never) -> None:
    nothing = {"framework": row.frameworks[0], "zero": {"stage": 0}, "argv": ("x",), "env": {}}
    assert row.broken({**nothing, "gpus": 1, **row.by_hand}), "the rule must know what it is for"
    near = [(sample, c) for sample, _, c in written() if c["framework"] in row.frameworks]
    assert near
    broken = [(sample.argv, dict(c)) for sample, c in near if row.broken(c)]
    # What the user's own settings break already is theirs, and `oomguard plan` says so.
    assert not broken


@pytest.mark.parametrize(
    "said",
    [
        "ValueError: Some keys are not used by the HfArgumentParser: ['packing_strategy']",
        "train.py: error: unrecognized arguments: --activation_checkpointing True",
        "TypeError: TrainingArguments.__init__() got an unexpected keyword argument 'x'",
        "sft.py: error: argument --packing_strategy: invalid choice: 'bfd_split'",
        "ValueError: Only 4-bit quantized model can use fsdp+qlora or auto device map.",
        "ValueError: DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models.",
        "ValueError: Bitsandbytes only accepts 4-bit or 8-bit quantization.",
        "ValueError: GaLore and APOLLO are incompatible with DeepSpeed yet.",
        "ValueError: DeepSpeed Zero-3 is not compatible with passing a `device_map`.",
        (
            "ValueError: Please correct the following DeepSpeed config values that mismatch "
            "TrainingArguments values:"
        ),
        "ValueError: You cannot perform fine-tuning on purely quantized models.",
        "AssertionError: Torch not compiled with CUDA enabled",
        ("TypeError: Embedding.loftq_init() missing 1 required positional argument: 'config'"),
        "ValueError: Only 4 bit quantization supported at the moment.",
        (
            "FileNotFoundError: Could not find file for model, ensure that there is a (sharded) "
            "safetensors file of the model."
        ),
        "ModuleNotFoundError: No module named 'bitsandbytes'",
        "ModuleNotFoundError: No module named 'liger_kernel'",
    ],
)
def test_a_refusal_that_depends_on_versions_or_the_machine_is_recognised(said: str) -> None:
    assert is_refusal(said)


@pytest.mark.parametrize(
    ("name", "argv", "text", "file", "said"),
    [
        ("llamafactory", "lmf train train.json", '{"a": 1}', "train.json", "fails on every JSON"),
        (
            "litgpt",
            "litgpt finetune_lora c --train.micro_batch_size 17",
            None,
            "",
            "bare AssertionError",
        ),
    ],
)
def test_what_would_crash_at_once_is_said_before(
    name: str, argv: str, text: str | None, file: str, said: str
) -> None:
    table = Bench(adapter_named(name))
    with pytest.raises(ConfigError, match=said):
        table.job(argv, text, file)


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("size mismatch ... lora_A", {"lora_rank": 2}),
        ("KeyError: 'state1'", {"optimizer": "adamw_bnb_8bit"}),
        ("Can't find a valid checkpoint at ...", {"sharding": Sharding.ZERO2}),
        ("AssertionError (ZeRO-2 -> ZeRO-3)", {"sharding": Sharding.ZERO3}),
        ("the state lies elsewhere", {"offload": frozenset({Offload.OPTIMIZER})}),
    ],
)
@pytest.mark.parametrize("name", ["lf-lora", "hf-quantizable", "trl-lora"])
def test_a_checkpoint_that_would_be_refused_is_not_gone_on_from(
    name: str, said: str, change: dict[str, Any]
) -> None:
    table, job = table_of(SAMPLES[name], 2)
    before = replace(job.asked, sharding=Sharding.NONE)
    mode, why = table.adapter.resume_mode(job, before, replace(before, **change))
    assert mode is not Mode.FULL, said
    assert why
    goes_on = replace(before, micro_batch=1, accumulation=before.rank_batch)
    assert table.adapter.resume_mode(job, before, goes_on)[0] is Mode.FULL
    four_bit = replace(before, quantization=Quantization.NF4)
    assert table.adapter.resume_mode(job, before, four_bit)[0] is Mode.FULL
