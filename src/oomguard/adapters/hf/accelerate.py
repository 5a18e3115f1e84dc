"""Accelerate's config: what its DeepSpeed and FSDP plugins share out, read and edited in place.

If it names a DeepSpeed file, stage, offload and batch keys are only in that file.
Source: accelerate 1.15.0, commands/launch.py, utils/launch.py, utils/dataclasses.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import yaml

from oomguard.adapters.hf import deepspeed
from oomguard.adapters.hf.deepspeed import STAGES
from oomguard.configfile.document import Document, Files
from oomguard.job.command import File
from oomguard.job.plan import ZERO, Offload, Plan, Sharding
from oomguard.job.training_job import Device, Job

_PLUGIN = "deepspeed_config"
_STEPS = f"{_PLUGIN}.gradient_accumulation_steps"
_DEVICES = {
    "offload_optimizer_device": Offload.OPTIMIZER,
    "offload_param_device": Offload.PARAMETERS,
}
#: The word of `accelerate launch`, and the key under its plugin, that name a DeepSpeed file.
FILE = "deepspeed_config_file"
#: Words of `accelerate launch` that decide over sharding and beat its file.
_WORDS = ("use_deepspeed", "zero_stage", "use_fsdp", FILE, *_DEVICES)
_DEFAULT_STAGE = "2"
_NAME, _ZERO_NAME = "accelerate.yaml", "deepspeed.json"


def deepspeed_file(options: Mapping[str, str], config: Mapping[str, object]) -> str | None:
    """Return the DeepSpeed file, as written in the launcher's flags or its file."""
    name = _stated(options, config).get(FILE)
    return str(name) if name and _has_deepspeed(options, config) else None


def sharding(
    options: Mapping[str, str], config: Mapping[str, object], zero: Mapping[str, object] | None
) -> tuple[Sharding | None, frozenset[Offload] | None]:
    """Read sharding and offload from the launcher's flags over its file.

    `zero` is the DeepSpeed file that they name; None for both if it was not found.
    """
    kind = str(config.get("distributed_type", "NO")).upper()
    if "use_fsdp" in options or kind == "FSDP":
        return Sharding.FSDP, frozenset()
    if not _has_deepspeed(options, config):
        return Sharding.NONE, frozenset()
    stated = _stated(options, config)
    if stated.get(FILE):
        return (None, None) if zero is None else deepspeed.zero_of(zero)
    stage = str(stated.get("zero_stage", _DEFAULT_STAGE))
    offload = {noun for key, noun in _DEVICES.items() if stated.get(key) in ("cpu", "nvme")}
    found = STAGES.get(int(stage), Sharding.NONE) if stage.isdecimal() else None
    return found, frozenset(offload)


def _has_deepspeed(options: Mapping[str, str], document: Mapping[str, object]) -> bool:
    kind = str(document.get("distributed_type", "NO")).upper()
    return "use_deepspeed" in options or (kind == "DEEPSPEED" and "use_fsdp" not in options)


def _stated(options: Mapping[str, str], document: Mapping[str, object]) -> dict[str, object]:
    plugin = document.get(_PLUGIN)
    return {**(plugin if isinstance(plugin, dict) else {}), **options}


def edited(document: Document, job: Job, plan: Plan, folder: str) -> tuple[File, ...]:
    """Change a user's config to `plan`, as files in `folder`, accelerate's own first.

    Empty where it holds as it is.
    """
    after, files = document, tuple[File, ...]()
    batch = (plan.micro_batch, plan.accumulation) != (job.asked.micro_batch, job.asked.accumulation)
    if batch and after.get(_STEPS) not in (None, "auto"):
        after = after.set(_STEPS, "auto")  # the Trainer refuses a number that differs from its own
    named = after.get(f"{_PLUGIN}.{FILE}")
    if isinstance(named, str) and named and plan.sharding in (*ZERO, job.asked.sharding):
        files = edited_file(named, job, plan, folder)
        after = after.set(f"{_PLUGIN}.{FILE}", files[0].path) if files else after
    elif (plan.sharding, plan.offload) != (job.asked.sharding, job.asked.offload):
        after = _resharded(after, job, plan)
    if after.text == document.text:
        return ()
    return (File(path=posixpath.join(folder, _NAME), text=after.text), *files)


def edited_file(name: str, job: Job, plan: Plan, folder: str) -> tuple[File, ...]:
    """Change the DeepSpeed file that the launcher was given; empty where it holds as it is."""
    own = Files.of(job.files).document(posixpath.join(job.cwd, name), is_json=True)
    if own is None:
        return ()
    after = deepspeed.edited(own, job.asked, plan)
    file = File(path=posixpath.join(folder, _ZERO_NAME), text=after.text)
    return () if after.text == own.text else (file,)


def new_config(job: Job, plan: Plan, folder: str) -> File:
    """Write the config of a job that had none, for as many processes as it has."""
    values: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        _PLUGIN: _plugin(plan),
        "mixed_precision": "no",  # the trainer's own setting decides
        "num_machines": job.world.nodes,
        "num_processes": job.world.size,
        "use_cpu": False,
    }
    return File(path=posixpath.join(folder, _NAME), text=yaml.safe_dump(values, sort_keys=False))


def refusal(options: Mapping[str, str], job: Job, plan: Plan) -> str | None:
    """Return why a change cannot be written: the launcher's own flags would override it."""
    if (plan.sharding, plan.offload) == (job.asked.sharding, job.asked.offload):
        return None
    # The DeepSpeed file that a word names is edited, as long as it is DeepSpeed that shares out.
    args = () if FILE in options and plan.sharding in ZERO else _WORDS
    stated = next((word for word in args if word in options), None)
    return f"accelerate launch --{stated} decides over the sharding" if stated else None


def _resharded(document: Document, job: Job, plan: Plan) -> Document:
    if plan.sharding not in ZERO:
        ranks = job.world.size > 1
        multi = "MULTI_CPU" if job.device is Device.CPU else "MULTI_GPU"
        return document.set("distributed_type", multi if ranks else "NO")
    document = document.set("distributed_type", "DEEPSPEED")
    for key, value in _plugin(plan).items():
        if document.get(f"{_PLUGIN}.{key}") != value:
            document = document.set(f"{_PLUGIN}.{key}", value)
    return document


def _plugin(plan: Plan) -> dict[str, object]:
    number = next(n for n, stage in STAGES.items() if stage is plan.sharding)
    offload = plan.offload or frozenset()
    is_three = plan.sharding is Sharding.ZERO3
    return {
        "zero_stage": number,
        **{key: "cpu" if noun in offload else "none" for key, noun in _DEVICES.items()},
        "zero3_init_flag": is_three,
        "zero3_save_16bit_model": is_three,
    }
