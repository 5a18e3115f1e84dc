"""Share parameters, gradients and optimizer state out between the ranks with DeepSpeed ZeRO-3."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Sharding,
    Strategy,
    ready_for_zero3,
    replace,
)

LESS = frozenset({Sharding.NONE, Sharding.ZERO1, Sharding.ZERO2})


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to ZeRO-3, where there are ranks to share with."""
    if plan.sharding is None:
        return "the framework has no such setting"
    if plan.sharding not in LESS:
        return f"the job is sharded already ({plan.sharding.value})"
    if job.world.size == 1:
        return "there is only one process to share with"
    base = ready_for_zero3(job, plan)
    if base is None:
        return "the requested base is quantized"
    return replace(base, sharding=Sharding.ZERO3)


STRATEGY = Strategy(
    summary="shard parameters, gradients and optimizer state with DeepSpeed ZeRO-3",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="there is one process only, the base is quantized, or it is sharded already",
    needs=("deepspeed",),
)
