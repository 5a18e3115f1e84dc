"""Keep weights, gradients and optimizer state in bf16 too."""

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
    """Go from mixed precision to bf16 alone: half the bytes of each weight and its state."""
    if plan.precision is not Precision.BF16_MIXED:
        precision = plan.precision.value if plan.precision else "not known"
        return f"the precision is {precision}, not bf16-mixed"
    if not job.bfloat16:
        return "the device does not compute in bf16"
    return replace(plan, precision=Precision.BF16_TRUE)


STRATEGY = Strategy(
    summary="keep weights and optimizer state in bf16 (no fp32 copy; small updates round away)",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD, Phase.EVAL})}),
    change=change,
    otherwise="they are in 16 bits already, the job does not mix bf16 with fp32, or the device "
    "does not compute in bf16",
)
