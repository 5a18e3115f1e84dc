"""DeepSpeed's config: which ZeRO stage a file asks for, and the file that asks for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from oomguard.plan import Offload, Sharding

STAGES = {1: Sharding.ZERO1, 2: Sharding.ZERO2, 3: Sharding.ZERO3}
ZERO = frozenset(STAGES.values())

_OFFLOADS = {"offload_optimizer": Offload.OPTIMIZER, "offload_param": Offload.PARAMETERS}
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


def zero_of(config: Mapping[str, object]) -> tuple[Sharding, frozenset[Offload]]:
    """Say what a config shares out between the ranks, and what it keeps in host memory."""
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = STAGES.get(cast("int", zero.get("stage", 0)), Sharding.NONE)
    offload = {noun for key, noun in _OFFLOADS.items() if _is_offloaded(zero.get(key))}
    if zero.get("cpu_offload") is True:  # the spelling before offload_optimizer
        offload.add(Offload.OPTIMIZER)
    return stage, frozenset(offload)


def fixed_batch_key(config: Mapping[str, object]) -> str | None:
    """Name the first batch key that holds a number; None if all follow the trainer."""
    return next((key for key in BATCH_KEYS if config.get(key, "auto") != "auto"), None)


def zero_config(stage: Sharding, offload: frozenset[Offload]) -> str:
    """Write the JSON for a ZeRO stage; every size follows the trainer's settings."""
    number = next(n for n, sharding in STAGES.items() if sharding is stage)
    zero: dict[str, object] = {"stage": number, "overlap_comm": False, "contiguous_gradients": True}
    if stage is Sharding.ZERO3:
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    for key, noun in _OFFLOADS.items():
        if noun in offload:
            zero[key] = {"device": "cpu", "pin_memory": True}
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
