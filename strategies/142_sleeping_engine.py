"""Free the memory of a colocated vLLM while the model trains: its sleep mode."""

from oomguard.strategy import SAME_MATH, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Switch its sleep mode on."""
    if plan.engine_sleeps is None:
        return "no vLLM shares the GPUs with the training"
    return "it sleeps already" if plan.engine_sleeps else replace(plan, engine_sleeps=True)


STRATEGY = Strategy(
    summary="put vLLM to sleep while the model trains (its weights are loaded again each time)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="no vLLM shares the GPUs with the training, or it sleeps already",
)
