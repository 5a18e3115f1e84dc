"""Keep the parameters in host memory, and bring each layer's in when it is needed (ZeRO-3)."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Device,
    Job,
    Kind,
    Offload,
    Phase,
    Plan,
    Remedy,
    Sharding,
    Strategy,
    ready_for_zero3,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | None:
    """Offload the parameters; on one GPU too, where ZeRO-3 alone saves nothing."""
    if job.device is Device.CPU or plan.offload is None or Offload.PARAMETERS in plan.offload:
        return None
    base = ready_for_zero3(job, plan)
    if base is None or plan.sharding in (None, Sharding.FSDP):
        return None
    return replace(base, sharding=Sharding.ZERO3, offload=plan.offload | {Offload.PARAMETERS})


STRATEGY = Strategy(
    summary="keep the parameters in host memory (ZeRO-3 with offload)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="there is no GPU, the base is quantized, or they are offloaded already",
    needs=("deepspeed",),
)
