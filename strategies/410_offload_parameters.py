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
    Quantization,
    Remedy,
    Sharding,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | None:
    """Offload the parameters; on one GPU too, where ZeRO-3 by itself would be no remedy."""
    if job.device is Device.CPU or plan.offload is None or Offload.PARAMETERS in plan.offload:
        return None
    asked = job.asked.quantization
    if asked not in (None, Quantization.NONE) or plan.sharding in (None, Sharding.FSDP):
        return None
    return replace(
        plan,
        sharding=Sharding.ZERO3,
        offload=plan.offload | {Offload.PARAMETERS},
        quantization=asked,  # see `switch_to_zero3`
    )


STRATEGY = Strategy(
    summary="keep the parameters in host memory (ZeRO-3 with offload)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="there is no GPU, the base is quantized, or they are offloaded already",
    needs=("deepspeed",),
)
