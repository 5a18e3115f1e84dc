"""Halve the rank of the LoRA adapter, while nothing has been trained yet."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Plan,
    Remedy,
    Strategy,
    Tuning,
    replace,
)

#: A smaller adapter saves next to nothing.
LEAST = 8


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve the rank down to 8; an adapter of another rank cannot resume a checkpoint."""
    if plan.tuning is not Tuning.LORA or plan.lora_rank is None:
        return "this is not a LoRA job, or its rank is not known"
    if plan.lora_rank <= LEAST:
        return f"its rank is {plan.lora_rank}"
    return replace(plan, lora_rank=max(LEAST, plan.lora_rank // 2))


STRATEGY = Strategy(
    summary="halve the rank of the LoRA adapter",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="this is not a LoRA job, or its rank is 8 or less",
    repeat=True,
    fresh=True,
)
