"""Halve the evaluation batch, which has no part in the training itself."""

from oomguard.strategy import SAME_MATH, Job, Kind, Phase, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve the evaluation batch down to 1."""
    if plan.eval_batch is None:
        return "the framework has no evaluation batch of its own"
    if plan.eval_batch == 1:
        return "the evaluation batch is 1"
    return replace(plan, eval_batch=plan.eval_batch // 2)


STRATEGY = Strategy(
    summary="halve the evaluation batch",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=frozenset({Phase.EVAL}))}),
    change=change,
    otherwise="the evaluation batch is 1, or the framework has none of its own",
    repeat=True,
)
