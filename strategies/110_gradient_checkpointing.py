"""Compute activations a second time in the backward pass instead of keeping them."""

from oomguard.strategy import SAME_MATH, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Turn gradient checkpointing on; a step then takes about a third longer."""
    if plan.checkpointing is None:
        return "the framework has no setting for it"
    return "it is on already" if plan.checkpointing else replace(plan, checkpointing=True)


STRATEGY = Strategy(
    summary="recompute activations in the backward pass (gradient checkpointing)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="it is on already, or the framework has no setting for it",
)
