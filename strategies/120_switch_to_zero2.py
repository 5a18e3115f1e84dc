"""Share gradients and optimizer state out between the ranks with DeepSpeed ZeRO-2."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Job,
    Kind,
    Plan,
    Quantization,
    Remedy,
    Sharding,
    Strategy,
    replace,
    trains_much,
)

LESS = frozenset({Sharding.NONE, Sharding.ZERO1})


def change(job: Job, plan: Plan) -> Plan | None:
    """Switch to ZeRO-2, where ranks have gradients and optimizer state worth sharing."""
    quantized = plan.quantization not in (None, Quantization.NONE)
    if job.world.size == 1 or quantized or plan.sharding not in LESS:
        return None
    return replace(plan, sharding=Sharding.ZERO2) if trains_much(job, plan) else None


STRATEGY = Strategy(
    summary="shard gradients and optimizer state with DeepSpeed ZeRO-2",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="there is one process only, an adapter is all that is trained, or it is sharded",
    needs=("deepspeed",),
)
