"""What every framework on transformers' TrainingArguments shares: keys, defaults, ZeRO files.

Source: transformers 5.6.0, training_args.py.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping

from oomguard.adapters import fields
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.fields import Binding, Key, direct, flag, number, switch, text
from oomguard.adapters.hf import deepspeed
from oomguard.configfile import values
from oomguard.configfile.document import Document, Files, Source
from oomguard.configfile.layered import Settings
from oomguard.job.command import File
from oomguard.job.plan import (
    FOUR_BIT,
    FOUR_BIT_KINDS,
    ZERO,
    LossKernel,
    Offload,
    Plan,
    Precision,
    Quantization,
    Sharding,
)
from oomguard.job.training_job import Device, Job

OUTPUT_DIR = text("output_dir", "trainer_output")
USE_CPU = flag("use_cpu")
BF16 = flag("bf16")
FP16 = flag("fp16")
OPTIMIZER = text("optim", "adamw_torch")  # from torch 2.8 on the fused twin: the same memory
MICRO_BATCH = number("per_device_train_batch_size", 8)
EVAL_BATCH = number("per_device_eval_batch_size", 8)
WORKERS = Key(name="dataloader_num_workers", decode=values.natural, default=0)
DEEPSPEED: Key[object] = Key(name="deepspeed", decode=values.anything, default=None)
FSDP: Key[object] = Key(name="fsdp", decode=values.anything, default=None)

ON_THE_FLY = FOUR_BIT | {Quantization.INT8}
#: Keys by which a flat config of TrainingArguments is recognized.
ARGUMENTS = frozenset(
    {"per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "output_dir"}
    | {"per_device_eval_batch_size", "gradient_checkpointing", "max_steps"}
)
#: Fields that no key holds: a DeepSpeed file, the environment and the monitor do.
ELSEWHERE = ("sharding", "offload", "allocator", "token_bound")

_REENTRANT: Key[object] = Key(
    name="gradient_checkpointing_kwargs", decode=values.anything, default=None
)
_EVAL_ACCUMULATION = Key(name="eval_accumulation_steps", decode=values.natural, default=0)
LOSS_ONLY, BEST = flag("prediction_loss_only"), fields.maybe_text("metric_for_best_model")

SHARED = (
    direct("micro_batch", MICRO_BATCH),
    direct("accumulation", number("gradient_accumulation_steps", 1)),
    direct("eval_batch", EVAL_BATCH),
    direct("optimizer", OPTIMIZER),
    direct("loader_workers", WORKERS),
    direct("pin_memory", flag("dataloader_pin_memory", default=True)),
    direct("auto_find_batch_size", flag("auto_find_batch_size")),
    direct("prediction_loss_only", LOSS_ONLY),
    Binding(
        field="eval_accumulation",
        read=_EVAL_ACCUMULATION.of,
        edits=lambda _, value: {_EVAL_ACCUMULATION: value or None},
    ),
)

#: The Trainer looks for the metric of the best model among those of each evaluation.
NO_METRIC = Refusal(
    message="The `metric_for_best_model` training argument is set to a metric that is not found.",
    when=lambda settings, job, plan: (
        plan.prediction_loss_only is True
        and not job.asked.prediction_loss_only
        and BEST.of(settings) not in (None, "loss", "eval_loss")
    ),
)


def steps_in_backward(settings: Settings) -> bool:
    """Return whether the optimizer uses each gradient in the backward pass, and drops it."""
    return OPTIMIZER.of(settings) in ("lomo", "adalomo")


def reentrant(settings: Settings) -> bool | None:
    """Return whether checkpointing is stated to be reentrant, None where that is not stated."""
    found = re.search(r"use_reentrant\W+(\w+)", str(_REENTRANT.of(settings)))
    return values.is_true(found[1]) if found else None


def checkpointing(key: str) -> Binding:
    """Return the binding of gradient checkpointing.

    When switched on, it is not reentrant unless the user's settings are: reentrant checkpointing
    finds no gradient behind the frozen embedding of an adapter.
    """
    enabled = flag(key)

    def edits(settings: Settings, value: object) -> fields.Edits:
        stated = not value or settings.has(_REENTRANT.name)
        how = {} if stated else {_REENTRANT: '{"use_reentrant": false}'}
        return {enabled: value, **how}

    return Binding(field="checkpointing", read=enabled.of, edits=edits)


def loss_kernel(key: str) -> Binding:
    """Return the binding of the fused loss, which Liger's kernels bring."""
    enabled = flag(key)
    return switch("loss_kernel", enabled, on=LossKernel.FUSED, off=LossKernel.EAGER)


def rank_under(adapter: Key[bool], rank: Key[int]) -> Binding:
    """Return the binding of a LoRA rank that holds only where a flag switches LoRA on."""
    return Binding(
        field="lora_rank",
        read=lambda settings: rank.of(settings) if adapter.of(settings) else None,
        edits=lambda _, value: {rank: value} if value is not None else {},
    )


def mixed_precision(settings: Settings) -> Precision:
    """Read bf16 and fp16."""
    if BF16.of(settings):
        return Precision.BF16_MIXED
    return Precision.FP16_MIXED if FP16.of(settings) else Precision.FP32


def precision_edits(_: Settings, value: object) -> dict[Key[object], object] | None:
    """Spell a precision by bf16 and fp16; None for those that keep weights in 16 bits."""
    if value not in (Precision.FP32, Precision.BF16_MIXED, Precision.FP16_MIXED):
        return None
    return {
        BF16: value is Precision.BF16_MIXED,
        FP16: value is Precision.FP16_MIXED,
    }


def four_bit(kind: str, double: bool) -> Quantization | None:
    """Return one of bitsandbytes' 4-bit formats."""
    return FOUR_BIT_KINDS.get((kind, double))


def spell_four_bit(value: object) -> tuple[str, bool] | None:
    """Return the kind of a 4-bit format, and whether its constants are quantized too."""
    return next((pair for pair, noun in FOUR_BIT_KINDS.items() if noun is value), None)


def device(settings: Settings, gpus: int) -> Device:
    """Return where the job computes."""
    return Device.CPU if gpus == 0 or USE_CPU.of(settings) else Device.CUDA


def deepspeed_path(settings: Settings, cwd: str) -> str | None:
    """Return the DeepSpeed file (absolute); None if there is none, or it is inline."""
    return file_named(DEEPSPEED.of(settings), cwd)


def config_stated(value: object, files: Mapping[str, str], cwd: str) -> Mapping[str, object] | None:
    """Return the config that a setting states, in a file or inline; None if it cannot be read."""
    path = file_named(value, cwd)
    return deepspeed.config_in(files, path) if path else deepspeed.mapping_of(value)


def file_named(value: object, cwd: str) -> str | None:
    """Return the file (absolute) that a setting names; None for an inline mapping or none."""
    path = value if isinstance(value, str) and not value.lstrip().startswith("{") else None
    return posixpath.join(cwd, path) if path else None


def sharding(
    settings: Settings, cwd: str, files: Mapping[str, str]
) -> tuple[Sharding | None, frozenset[Offload] | None]:
    """Read sharding and offload; None for both where the DeepSpeed file was not found."""
    if not DEEPSPEED.of(settings):
        return (Sharding.FSDP if FSDP.of(settings) else Sharding.NONE), frozenset()
    config = _zero_values(settings, cwd, files)
    return (None, None) if config is None else deepspeed.zero_of(config)


def reduce_bucket(settings: Settings, job: Job) -> int | None:
    """Count the gradients that DeepSpeed reduces at a time; None where that follows the model.

    So it does in the configs that oomguard writes; one that was not found has the default.
    """
    if job.asked.sharding not in ZERO:
        return None
    own = _zero_values(settings, job.cwd, job.files)
    return deepspeed.REDUCE_BUCKET if own is None else deepspeed.reduce_bucket(own)


def overlap_comm(settings: Settings, job: Job) -> bool:
    """Return whether DeepSpeed reduces during the backward pass; by default not before ZeRO-3."""
    if job.asked.sharding not in ZERO:
        return False
    own = _zero_values(settings, job.cwd, job.files)
    return own is not None and deepspeed.overlap_comm(own)


def zero_optimizer(settings: Settings, zero: Mapping[str, object] | None) -> str | None:
    """Return the optimizer of the DeepSpeed config, which wins over `optim`; None if it has none.

    `zero` is the config if it is a file.
    """
    inline = deepspeed.mapping_of(DEEPSPEED.of(settings)) if zero is None else zero
    return deepspeed.optimizer_of(inline or {})


def _zero_values(
    settings: Settings, cwd: str, files: Mapping[str, str]
) -> Mapping[str, object] | None:
    """Return the DeepSpeed config, a file or inline; None if there is none."""
    return config_stated(DEEPSPEED.of(settings), files, cwd)


def with_zero_file(
    settings: Settings, job: Job, plan: Plan, folder: str
) -> tuple[Settings, tuple[File, ...]]:
    """Return settings that name the DeepSpeed file of a plan, and that file.

    It is the user's own with the plan's changes, a new one if there was none, and nothing if the
    user's own needs no change.
    """
    if plan.sharding not in ZERO:
        gone = settings if zero_as_asked(job, plan) else settings.set(DEEPSPEED.name, None)
        return gone, ()
    path = posixpath.join(folder, f"deepspeed_{plan.sharding.value}.json")
    own = _own_zero_config(settings, job)
    text = deepspeed.zero_config(plan.sharding, plan.offload or frozenset())
    if own is not None:
        text = deepspeed.edited(own, job.asked, plan).text
    if own is not None and text == own.text:
        return settings, ()
    return settings.set(DEEPSPEED.name, path), (File(path=path, text=text),)


def _own_zero_config(settings: Settings, job: Job) -> Document | None:
    """Return the DeepSpeed config that the job has, an inline one as if it were a file."""
    path = deepspeed_path(settings, job.cwd)
    if path is not None:
        return Files.of(job.files).document(path, is_json=True)
    inline = deepspeed.mapping_of(DEEPSPEED.of(settings))
    if inline is None:
        return None
    return Document.parse(Source(path="inline.json", text=json.dumps(inline, indent=2) + "\n"))


def zero_as_asked(job: Job, plan: Plan) -> bool:
    """Return whether sharding and offload are what the user asked for."""
    return (plan.sharding, plan.offload) == (job.asked.sharding, job.asked.offload)


def refuses_sharding(job: Job, plan: Plan) -> str | None:
    """Return why a change of sharding or offload cannot be written; None if it can."""
    offload = plan.offload or frozenset()
    fsdp = Sharding.FSDP in (plan.sharding, job.asked.sharding)
    reasons = {
        "the job's DeepSpeed file was not found, so its stage is not known": (
            job.asked.sharding is None
        ),
        "FSDP is neither switched on nor off here": fsdp,
        "offload needs DeepSpeed ZeRO": bool(offload) and plan.sharding not in ZERO,
        "there is no setting that offloads activations": Offload.ACTIVATIONS in offload,
        "parameters are offloaded by ZeRO-3 alone": (
            Offload.PARAMETERS in offload and plan.sharding is not Sharding.ZERO3
        ),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    return None if zero_as_asked(job, plan) else found


def packages(plan: Plan) -> frozenset[str]:
    """Return the packages that a plan needs beside transformers itself."""
    optimizer = plan.optimizer or ""
    its_optimizer = any(part in optimizer for part in ("8bit", "bnb", "paged"))
    needed = {
        "deepspeed": plan.sharding in ZERO,
        "bitsandbytes": plan.quantization in ON_THE_FLY or its_optimizer,
        "liger_kernel": plan.loss_kernel is LossKernel.FUSED,
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)
