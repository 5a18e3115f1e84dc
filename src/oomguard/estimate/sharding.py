"""What data-parallel ranks share out between themselves, and what that costs in buffers.

Source: DeepSpeed 0.19, runtime/zero/{stage_1_and_2,stage3}.py; transformers 5,
integrations/deepspeed.py ("auto"); PyTorch 2, FSDP and DDP.
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate import constants
from oomguard.estimate.architecture import Architecture
from oomguard.estimate.formats import ZERO
from oomguard.plan import Offload, Plan, Sharding
from oomguard.recipe import Recipe

_HALF, _FP32 = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The part of each kind that one rank holds on its GPU, from 0 to 1.

    `master_bytes` per trained number are DeepSpeed's fp32 copy, shared as the optimizer is.
    """

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    master_bytes: int = 0


def shares(plan: Plan, ranks: int) -> Shares:
    """Say what one of `ranks` holds."""
    sharding, offload = plan.sharding or Sharding.NONE, plan.offload or frozenset()
    part = 1.0 / ranks
    weights = part if sharding in (Sharding.ZERO3, Sharding.FSDP) else 1.0
    kept = sharding in (Sharding.NONE, Sharding.ZERO1)
    optimizer = 1.0 if sharding is Sharding.NONE else part
    return Shares(
        weights=0.0 if Offload.PARAMETERS in offload else weights,
        gradients=1.0 if kept else (0.0 if Offload.OPTIMIZER in offload else part),
        optimizer=0.0 if Offload.OPTIMIZER in offload else optimizer,
        master_bytes=_FP32 if sharding in ZERO else 0,
    )


def buckets(model: Architecture, plan: Plan, recipe: Recipe, trained: int) -> int:
    """Give the bytes of the flat buffers and of the parameters gathered for the layer at work."""
    sharding = plan.sharding or Sharding.NONE
    square = model.hidden**2
    bucket = recipe.reduce_bucket or square
    if sharding in (Sharding.ZERO1, Sharding.ZERO2):
        gathered = min(constants.ALLGATHER_BUCKET, trained)
        return _HALF * (bucket + gathered)
    if sharding is Sharding.ZERO3:
        prefetch = int(constants.AUTO_PREFETCH * square)
        return _HALF * (bucket + prefetch + _at_work(model))
    if sharding is Sharding.FSDP:
        return _HALF * 2 * _at_work(model)  # this layer's, and the next one's on its way
    return 0


def communication(plan: Plan, ranks: int, gradient_bytes: int) -> int:
    """Give the bytes of NCCL's buffers and of DDP's copy of the gradients."""
    if ranks == 1:
        return 0
    plain = (plan.sharding or Sharding.NONE) is Sharding.NONE
    return constants.NCCL_BYTES + (constants.DDP_GRADIENT_COPIES * gradient_bytes if plain else 0)


def offloaded(plan: Plan, ranks_of_node: int, ranks: int, *, weights: int, trained: int) -> int:
    """Give the bytes that one node's host holds for what was offloaded.

    `weights` and `trained` are counts of numbers. The optimizer's part on the host is its fp32
    copy, both moments and an fp32 gradient.
    """
    offload, part = plan.offload or frozenset(), ranks_of_node / ranks
    optimizer = 4 * _FP32 * trained if Offload.OPTIMIZER in offload else 0
    parameters = _HALF * weights if Offload.PARAMETERS in offload else 0
    return int((optimizer + parameters) * part)


def _at_work(model: Architecture) -> int:
    layer = model.layer_linear + model.layer_small
    return min(max(layer, model.embedding), constants.MAX_LIVE_PARAMETERS)
