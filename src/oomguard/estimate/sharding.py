"""What data-parallel ranks share out between themselves, and what that costs in buffers.

Source: DeepSpeed 0.19, runtime/zero/{stage_1_and_2,stage3,partitioned_param_coordinator}.py;
transformers 5, integrations/deepspeed.py ("auto"); accelerate 1.11, FSDP; PyTorch 2, FSDP and DDP.
Validated against real ranks: docs/prediction.md, "Several GPUs".
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate import constants
from oomguard.estimate.architecture import Architecture
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import ZERO, Offload, Plan, Sharding

_HALF, _FP32 = 2, 4
#: What the host holds for a trained number: fp32 copy, both moments, fp32 gradient, and 16 bits
#: more (ZeRO-2: the new weights on their way back; ZeRO-3: the gradients of its partition).
_OFFLOADED_OPTIMIZER = 4 * _FP32 + _HALF
_SHARDED_WEIGHTS = frozenset({Sharding.ZERO3, Sharding.FSDP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The part of each kind that one rank holds on its GPU: 1 for all of it.

    Gradients: `before` are those of earlier micro batches, `gradients` those at the end of the
    backward pass, `after` those that the optimizer starts with. `master_bytes` per trained number
    are DeepSpeed's fp32 copy, shared as the optimizer is.
    """

    weights: float = 1.0
    before: float = 0.0
    gradients: float = 1.0
    after: float = 1.0
    optimizer: float = 1.0
    master_bytes: int = 0


def rank_fractions(plan: Plan, ranks: int) -> Shares:
    """Return what one of `ranks` holds."""
    sharding, offload = plan.sharding or Sharding.NONE, plan.offload or frozenset()
    part, accumulates = 1.0 / ranks, plan.accumulation > 1
    weights = part if sharding in _SHARDED_WEIGHTS else 1.0
    after = 1.0 if sharding is Sharding.NONE else part
    elsewhere = Offload.OPTIMIZER in offload
    kept = 1.0 if sharding in (Sharding.NONE, Sharding.ZERO1) else part
    # Up to ZeRO-2 the rank's own part is reduced into a buffer beside what was accumulated.
    twice = part if accumulates and sharding in (Sharding.ZERO1, Sharding.ZERO2) else 0.0
    stands = accumulates or sharding is Sharding.ZERO3  # which has one buffer from the start
    gone = elsewhere and sharding is not Sharding.ZERO1
    return Shares(
        weights=0.0 if Offload.PARAMETERS in offload else weights,
        before=kept if stands and not gone else 0.0,
        gradients=0.0 if gone else kept + twice,
        after=0.0 if elsewhere else after,
        optimizer=0.0 if elsewhere else after,
        master_bytes=_FP32 if sharding in ZERO else 0,
    )


def buckets(model: Architecture, plan: Plan, recipe: MemorySettings, size: int) -> int:
    """Return the bytes of DeepSpeed's flat buffers; `size` is that of a gradient's number."""
    sharding = plan.sharding or Sharding.NONE
    if sharding not in ZERO:
        return 0
    bucket = recipe.reduce_bucket or model.hidden**2
    if sharding is Sharding.ZERO3:
        return size * bucket
    # A gradient on its way to the host has a buffer, and is cast to fp32 for its norm.
    offloaded = Offload.OPTIMIZER in (plan.offload or ())
    staged = _largest(model) * (2 * size + _FP32) if offloaded else 0
    return size * bucket * (2 if recipe.overlap_comm else 1) + staged


def gathered(model: Architecture, plan: Plan, *, layer_bytes: int, size: int) -> int:
    """Return the bytes of whole parameters that are there while the loss goes backward.

    `layer_bytes` are those of one layer, `size` of one number outside of the layers. FSDP keeps
    what lies outside of the layers from the forward pass on, and has one layer at work and the
    next on its way. ZeRO-3 gathers ahead with every module that is entered, and most of them have
    no parameters of their own, until `stage3_max_live_parameters` are there: a small model is
    gathered as a whole. What is needed at once comes on top.
    """
    outside = model.embedding + model.head
    if plan.sharding is Sharding.FSDP:
        return outside * size + 2 * layer_bytes
    if plan.sharding is not Sharding.ZERO3:
        return 0
    live = constants.MAX_LIVE_PARAMETERS * size + layer_bytes
    return min(outside * size + model.layers * layer_bytes, live)


def gradients_before_reduction(
    model: Architecture, plan: Plan, ranks: int, *, trained: int, size: int, shard_size: int
) -> int:
    """Return the bytes of gradients that are not shared out yet at the end of the backward pass.

    FSDP reduces those of embedding and head together, when all are there, and then has the rank's
    part (`shard_size` a number) beside the one of earlier micro batches; DeepSpeed each matrix.
    """
    if plan.sharding is Sharding.FSDP:
        outside = min(trained, model.embedding + model.head)
        new = outside * shard_size // ranks if plan.accumulation > 1 else 0
        return outside * size + new
    one_by_one = plan.sharding in (Sharding.ZERO2, Sharding.ZERO3)
    return min(trained, _largest(model)) * size if one_by_one else 0


def updated(plan: Plan, trained: int, ranks: int) -> int:
    """Count the numbers that DeepSpeed's optimizer updates at once."""
    part = trained // ranks
    return min(part, constants.SUB_GROUP) if plan.sharding is Sharding.ZERO3 else part


def communication(plan: Plan, ranks: int, gradient_bytes: int, nccl_bytes: int) -> int:
    """Return the bytes of NCCL's buffers and of DDP's copy of the gradients."""
    if ranks == 1:
        return 0
    plain = (plan.sharding or Sharding.NONE) is Sharding.NONE
    return nccl_bytes + (constants.DDP_GRADIENT_COPIES * gradient_bytes if plain else 0)


def offloaded(plan: Plan, ranks_of_node: int, ranks: int, *, weights: int, trained: int) -> int:
    """Return the bytes that one node's host holds for what was offloaded.

    `weights` and `trained` are counts of numbers.
    """
    offload, part = plan.offload or frozenset(), ranks_of_node / ranks
    optimizer = _OFFLOADED_OPTIMIZER * trained if Offload.OPTIMIZER in offload else 0
    parameters = _HALF * weights if Offload.PARAMETERS in offload else 0
    return int((optimizer + parameters) * part)


def _largest(model: Architecture) -> int:
    return max(model.embedding, *(linear.inputs * linear.outputs for linear in model.linears))
