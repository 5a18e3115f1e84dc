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
    why_not_sharded,
)

LESS = frozenset({Sharding.NONE, Sharding.ZERO1, Sharding.ZERO2})


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to ZeRO-3, where there are ranks to share with."""
    why_not = why_not_sharded(job, plan, less=LESS)
    if why_not is not None:
        return why_not
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
