"""DeepSpeed's config, which all frameworks on transformers share.

Its values win over the trainer's own settings; "auto" follows them. Source: transformers
5.6.0, integrations/deepspeed.py; deepspeed 0.19.8, runtime/config.py and runtime/zero/config.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from oomguard.configfile.document import Document, Files, Source
from oomguard.errors import ConfigError
from oomguard.job.plan import Offload, Plan, Sharding

STAGES = {1: Sharding.ZERO1, 2: Sharding.ZERO2, 3: Sharding.ZERO3}

_OFFLOADS = {"offload_optimizer": Offload.OPTIMIZER, "offload_param": Offload.PARAMETERS}
#: Gradients that DeepSpeed reduces at a time by default.
REDUCE_BUCKET = 500_000_000
#: What DeepSpeed's own optimizers are called in the trainer's settings.
_OPTIMIZERS = {"adamw": "adamw_torch", "adam": "adamw_torch"}
_ON = {"device": "cpu", "pin_memory": True}
#: DeepSpeed refuses a number that differs from the trainer's; "auto" follows it.
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def mapping_of(config: object) -> Mapping[str, object] | None:
    """Read a config given as a mapping or as JSON text; None if it is neither."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except json.JSONDecodeError:
            return None
    return config if isinstance(config, dict) else None


def config_in(files: Mapping[str, str], path: str | None) -> Mapping[str, object] | None:
    """Read a config file; None if it is missing or DeepSpeed could not read it."""
    try:
        document = Files.of(files).document(path, is_json=True)
    except ConfigError:
        return None
    return document.values if document else None


def zero_of(config: Mapping[str, object]) -> tuple[Sharding, frozenset[Offload]]:
    """Return what a config shares out between the ranks, and what it keeps in host memory."""
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = STAGES.get(cast("int", zero.get("stage", 0)), Sharding.NONE)
    offload = {noun for key, noun in _OFFLOADS.items() if _is_offloaded(zero.get(key))}
    if zero.get("cpu_offload") is True:  # the spelling before offload_optimizer
        offload.add(Offload.OPTIMIZER)
    return stage, frozenset(offload)


def reduce_bucket(config: Mapping[str, object]) -> int | None:
    """Count the gradients that are reduced at a time; None where that follows the model."""
    zero = config.get("zero_optimization")
    size = zero.get("reduce_bucket_size", REDUCE_BUCKET) if isinstance(zero, dict) else None
    return int(size) if isinstance(size, int | float) else None


def overlap_comm(config: Mapping[str, object]) -> bool:
    """Return whether reducing goes on beside the backward pass, for which there are two buckets."""
    zero = config.get("zero_optimization")
    return isinstance(zero, dict) and zero.get("overlap_comm") is True


def optimizer_of(config: Mapping[str, object]) -> str | None:
    """Return the optimizer that a config brings, by the trainer's name; None if it brings none."""
    block = config.get("optimizer")
    name = block.get("type") if isinstance(block, dict) else None
    return _OPTIMIZERS.get(str(name).lower(), str(name).lower()) if name else None


def edited(document: Document, asked: Plan, plan: Plan) -> Document:
    """Change a user's config to `plan`; keys that it need not touch stay as they are.

    Batch keys go back to "auto" with a new batch, since DeepSpeed refuses a number that differs
    from the trainer's; the `optimizer` block goes with a new optimizer, which it would override.
    """
    if (plan.micro_batch, plan.accumulation) != (asked.micro_batch, asked.accumulation):
        for key in BATCH_KEYS:
            if document.get(key) not in (None, "auto"):
                document = document.set(key, "auto")
    if plan.optimizer != asked.optimizer and document.has("optimizer"):
        document = _without(document, "optimizer")
    if (plan.sharding, plan.offload) != (asked.sharding, asked.offload):
        document = _resharded(document, plan)
    return document


def _resharded(document: Document, plan: Plan) -> Document:
    zero = "zero_optimization"
    number = next(n for n, sharding in STAGES.items() if sharding is plan.sharding)
    document = document.set(f"{zero}.stage", number)
    gather = f"{zero}.stage3_gather_16bit_weights_on_model_save"
    if plan.sharding is Sharding.ZERO3 and not document.has(gather):
        document = document.set(gather, value=True)  # else no weights are saved
    for key, noun in _OFFLOADS.items():
        wanted = noun in (plan.offload or frozenset())
        block = document.get(f"{zero}.{key}")
        if wanted is _is_offloaded(block):
            continue
        if isinstance(block, dict):
            document = document.set(f"{zero}.{key}.device", "cpu" if wanted else "none")
        else:
            document = document.set(f"{zero}.{key}", _ON)
    return document.set(f"{zero}.cpu_offload", False) if _is_old(document) else document


def _is_old(document: Document) -> bool:
    return document.get("zero_optimization.cpu_offload") is True


def _without(document: Document, key: str) -> Document:
    before, after = document.text, document.without(key)
    lines = zip(after.splitlines(keepends=True), before.splitlines(keepends=True), strict=True)
    kept = "".join(new for new, old in lines if new.strip() or not old.strip())
    return Document.parse(Source(path=document.path, text=kept))


def zero_config(stage: Sharding, offload: frozenset[Offload]) -> str:
    """Write the JSON for a ZeRO stage; every size follows the trainer's settings."""
    number = next(n for n, sharding in STAGES.items() if sharding is stage)
    zero: dict[str, object] = {
        "stage": number,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",  # by default it takes 1 GB in 16 bits, 2 GB in fp32
    }
    if stage is Sharding.ZERO3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    for key, noun in _OFFLOADS.items():
        if noun in offload:
            zero[key] = _ON
    config = {
        **dict.fromkeys((*BATCH_KEYS, "gradient_clipping"), "auto"),
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
    return json.dumps(config, indent=2) + "\n"


def _is_offloaded(block: object) -> bool:
    return isinstance(block, dict) and block.get("device", "none") in ("cpu", "nvme")
