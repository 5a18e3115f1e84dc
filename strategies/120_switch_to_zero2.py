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
    why_not_sharded,
)

LESS = frozenset({Sharding.NONE, Sharding.ZERO1})


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to ZeRO-2, where ranks have gradients and optimizer state worth sharing."""
    why_not = why_not_sharded(job, plan, less=LESS)
    if why_not is not None:
        return why_not
    if plan.quantization not in (None, Quantization.NONE):
        return "the base is quantized"
    if not trains_much(job, plan):
        return "only an adapter is trained, which has little to share"
    return replace(plan, sharding=Sharding.ZERO2)


STRATEGY = Strategy(
    summary="shard gradients and optimizer state with DeepSpeed ZeRO-2",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="there is one process only, an adapter is all that is trained, or it is sharded",
    needs=("deepspeed",),
)
