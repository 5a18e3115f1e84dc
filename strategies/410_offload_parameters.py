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


def change(job: Job, plan: Plan) -> Plan | str:
    """Offload the parameters; on one GPU too, where ZeRO-3 alone saves nothing."""
    if job.device is Device.CPU:
        return "there is no GPU"
    if plan.offload is None or plan.sharding is None:
        return "the framework has no such setting"
    if Offload.PARAMETERS in plan.offload:
        return "they are in host memory already"
    if plan.sharding is Sharding.FSDP:
        return "the job is sharded by FSDP"
    base = ready_for_zero3(job, plan)
    if base is None:
        return "the requested base is quantized"
    return replace(base, sharding=Sharding.ZERO3, offload=plan.offload | {Offload.PARAMETERS})


STRATEGY = Strategy(
    summary="keep the parameters in host memory (ZeRO-3 with offload)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="there is no GPU, the base is quantized, or they are offloaded already",
    needs=("deepspeed",),
)
