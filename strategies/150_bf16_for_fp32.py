"""Compute in bf16 instead of fp32; the weights that are trained stay in fp32."""

from oomguard.strategy import (
    SAME_RECIPE,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Precision,
    Remedy,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to mixed precision, on devices that compute in bf16."""
    if plan.precision is None:
        return "the framework does not say in which precision it computes"
    if plan.precision is not Precision.FP32:
        return f"the precision is lower already ({plan.precision.value})"
    if not job.bfloat16:
        return "the device does not compute in bf16"
    return replace(plan, precision=Precision.BF16_MIXED)


STRATEGY = Strategy(
    summary="compute in bf16 instead of fp32",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.EVAL})}),
    change=change,
    otherwise="the precision is lower already, or the device does not compute in bf16",
)
