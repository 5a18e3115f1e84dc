"""Train a LoRA adapter instead of all the weights."""

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


def change(job: Job, plan: Plan) -> Plan | str:
    """Switch to LoRA, which needs gradients and optimizer state for the adapter alone.

    Sharding, offload and frozen parts go back to what was asked: they were for all the weights.
    """
    if plan.tuning is None:
        return "what is trained is not known"
    if plan.tuning not in (Tuning.FULL, Tuning.PARTIAL):
        return "an adapter is trained already"
    return replace(
        plan,
        tuning=Tuning.LORA,
        sharding=job.asked.sharding,
        offload=job.asked.offload,
        frozen=job.asked.frozen,
    )


STRATEGY = Strategy(
    summary="train a LoRA adapter instead of all weights (it usually wants a higher learning rate)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="an adapter is trained already",
)
