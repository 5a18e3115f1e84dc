"""Load the base model in 4-bit (QLoRA: NF4, double quantization) under the LoRA adapter."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Quantization,
    Remedy,
    Strategy,
    Tuning,
    replace,
)

GREATER = frozenset({Quantization.NONE, Quantization.INT8})


def change(job: Job, plan: Plan) -> Plan | None:
    """Quantize the base of a LoRA job; the sharding goes back to what was asked.

    ZeRO-3 and a 4-bit base branch, see `switch_to_zero3`.
    """
    if plan.tuning is not Tuning.LORA or plan.quantization not in GREATER:
        return None
    return replace(
        plan,
        quantization=Quantization.NF4_DOUBLE,
        sharding=job.asked.sharding,
        offload=job.asked.offload,
    )


STRATEGY = Strategy(
    summary="load the base model in 4-bit (QLoRA)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="this is no LoRA job, the base is in 4-bit already, or the framework cannot",
    needs=("bitsandbytes",),
)
