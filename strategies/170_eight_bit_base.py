"""Load the base model in 8-bit under the LoRA adapter."""

from oomguard.strategy import (
    SAME_RECIPE,
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


def change(job: Job, plan: Plan) -> Plan | None:
    """Quantize the base of a LoRA job (LLM.int8); the sharding goes back to what was asked."""
    if plan.tuning is not Tuning.LORA or plan.quantization is not Quantization.NONE:
        return None
    return replace(
        plan,
        quantization=Quantization.INT8,
        sharding=job.asked.sharding,
        offload=job.asked.offload,
    )


STRATEGY = Strategy(
    summary="load the base model in 8-bit",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="this is no LoRA job, the base is quantized already, or the framework cannot",
    needs=("bitsandbytes",),
)
