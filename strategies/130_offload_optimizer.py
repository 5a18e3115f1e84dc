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


def change(job: Job, plan: Plan) -> Plan | str:  # noqa: PLR0911  one for each reason
    """Offload the optimizer; without ZeRO, which offloads it, ZeRO-2 comes in, on one GPU too.

    DeepSpeed refuses optimizers that it cannot update on the host, so AdamW in full precision
    is the only one that goes.
    """
    if job.device is Device.CPU:
        return "there is no GPU"
    if plan.offload is None:
        return "the framework has no such setting"
    if Offload.OPTIMIZER in plan.offload:
        return "it is in host memory already"
    if plan.quantization not in (None, Quantization.NONE):
        return "the base is quantized"
    if plan.optimizer is None or not plan.optimizer.startswith("adamw_torch"):
        return f"DeepSpeed cannot update {plan.optimizer or 'this optimizer'} on the host"
    if not trains_much(job, plan):
        return "only an adapter is trained, whose optimizer state is small"
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
