"""Keep the optimizer's state in host memory, and update there (ZeRO-Offload)."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    ZERO,
    Device,
    Job,
    Kind,
    Offload,
    Plan,
    Quantization,
    Remedy,
    Sharding,
    Strategy,
    replace,
    trains_much,
)


def change(job: Job, plan: Plan) -> Plan | None:
    """Offload the optimizer; without ZeRO, which offloads it, ZeRO-2 comes in, on one GPU too.

    DeepSpeed refuses optimizers that it cannot update on the host, so AdamW in full precision
    is the only one that goes.
    """
    if job.device is Device.CPU or plan.offload is None or Offload.OPTIMIZER in plan.offload:
        return None
    plain = plan.optimizer is not None and plan.optimizer.startswith("adamw_torch")
    quantized = plan.quantization not in (None, Quantization.NONE)
    if quantized or not plain or not trains_much(job, plan):
        return None
    sharding = plan.sharding if plan.sharding in ZERO else Sharding.ZERO2
    return replace(plan, sharding=sharding, offload=plan.offload | {Offload.OPTIMIZER})


STRATEGY = Strategy(
    summary="keep the optimizer's state in host memory (ZeRO-Offload)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="there is no GPU, only an adapter is trained, the optimizer is not plain AdamW,"
    " or it is offloaded already",
    needs=("deepspeed",),
)
