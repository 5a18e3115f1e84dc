"""Evaluate the loss alone: predictions, which take samples x tokens x vocabulary, are not kept."""

from oomguard.strategy import SAME_MATH, Job, Kind, Phase, Plan, Remedy, Strategy, replace

EVAL = frozenset({Phase.EVAL})


def change(_job: Job, plan: Plan) -> Plan | str:
    """Keep the loss of each evaluation step and nothing else."""
    if plan.prediction_loss_only is None:
        return "the framework has no such setting"
    if plan.prediction_loss_only:
        return "only the loss is evaluated already"
    return replace(plan, prediction_loss_only=True)


STRATEGY = Strategy(
    summary="evaluate the loss alone; other metrics are not computed",
    fidelity=SAME_MATH,
    # Predictions that were moved to the host can fill that instead (transformers#25313).
    remedies=frozenset(
        {Remedy(kind=Kind.DEVICE_OOM, phases=EVAL), Remedy(kind=Kind.HOST_OOM, phases=EVAL)}
    ),
    change=change,
    otherwise="only the loss is evaluated already, or the framework has no such choice",
)
