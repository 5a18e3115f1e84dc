"""Free the memory of a colocated vLLM while the model trains: its sleep mode."""

from oomguard.strategy import SAME_MATH, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | None:
    """Switch its sleep mode on."""
    return replace(plan, engine_sleeps=True) if plan.engine_sleeps is False else None


STRATEGY = Strategy(
    summary="put vLLM to sleep while the model trains (its weights are loaded again each time)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="no vLLM shares the GPUs with the training, or it sleeps already",
)
