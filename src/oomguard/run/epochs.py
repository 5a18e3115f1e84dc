"""The optimizer steps of an epoch, as transformers' Trainer and accelerate take them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oomguard.job.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The optimizer steps of one epoch, and the samples of the last of them, over all ranks."""

    steps: int
    last_samples: int | None


def epoch(samples: int, plan: Plan, world: int, *, drop_last: bool) -> Epoch:
    """Return the optimizer steps of an epoch as transformers' Trainer and accelerate take them.

    Source: transformers 5.23.0, trainer.py, set_initial_training_values; accelerate 1.15.0,
    data_loader.py, BatchSamplerShard.
    """
    micro, accumulation = plan.micro_batch, plan.accumulation
    per_rank = batches(samples, micro, world, drop_last=drop_last)
    steps = max(1, math.ceil(per_rank / accumulation))
    last = per_rank - (steps - 1) * accumulation
    if drop_last:
        return Epoch(steps=steps, last_samples=last * micro * world)
    # Several ranks fill their last batches up with samples from the beginning.
    return Epoch(
        steps=steps,
        last_samples=samples - (steps - 1) * micro * accumulation if world == 1 else None,
    )


def batches(samples: int, micro: int, world: int, *, drop_last: bool) -> int:
    """Return the batches of one rank in an epoch."""
    if drop_last:
        return samples // micro // world
    return math.ceil(math.ceil(samples / micro) / world)
