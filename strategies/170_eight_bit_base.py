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
    quantized_base,
)

WHOLE = frozenset({Quantization.NONE})


def change(job: Job, plan: Plan) -> Plan | str:
    """Quantize the base of a LoRA job (LLM.int8)."""
    return quantized_base(job, plan, Quantization.INT8, instead_of=WHOLE)


STRATEGY = Strategy(
    summary="load the base model in 8-bit",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="this is not a LoRA job, the base is quantized already, or the framework cannot",
    needs=("bitsandbytes",),
)
