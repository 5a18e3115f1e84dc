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
    quantized_base,
)

GREATER = frozenset({Quantization.NONE, Quantization.INT8})


def change(job: Job, plan: Plan) -> Plan | str:
    """Quantize the base of a LoRA job (NF4)."""
    return quantized_base(job, plan, Quantization.NF4_DOUBLE, instead_of=GREATER)


STRATEGY = Strategy(
    summary="load the base model in 4-bit (QLoRA)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="this is not a LoRA job, the base is in 4-bit already, or the framework cannot",
    needs=("bitsandbytes",),
)
