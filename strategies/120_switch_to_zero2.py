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


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to ZeRO-2, where ranks have gradients and optimizer state worth sharing."""
    if plan.sharding is None:
        return "the framework has no such setting"
    if plan.sharding not in LESS:
        return f"the job is sharded already ({plan.sharding.value})"
    if job.world.size == 1:
        return "there is only one process to share with"
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
