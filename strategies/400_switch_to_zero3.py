"""Share parameters, gradients and optimizer state out between the ranks with DeepSpeed ZeRO-3."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Quantization,
    Remedy,
    Sharding,
    Strategy,
    replace,
)

LESS = frozenset({Sharding.NONE, Sharding.ZERO1, Sharding.ZERO2})


def change(job: Job, plan: Plan) -> Plan | None:
    """Switch to ZeRO-3, where there are ranks to share with and no quantized base was asked for.

    ZeRO-3 and a quantized base branch: together they can need more memory than either
    (transformers#24395, peft#2016), so a quantization that a rung brought in goes again.
    """
    asked = job.asked.quantization
    if job.world.size == 1 or asked not in (None, Quantization.NONE) or plan.sharding not in LESS:
        return None
    return replace(plan, sharding=Sharding.ZERO3, quantization=asked)


STRATEGY = Strategy(
    summary="share parameters, gradients and optimizer state out with DeepSpeed ZeRO-3",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="there is one process only, the base is quantized, or it is sharded already",
    needs=("deepspeed",),
)
