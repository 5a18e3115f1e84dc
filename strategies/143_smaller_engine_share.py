"""Reduce the share of each GPU that a colocated vLLM claims: fewer completions run at once."""

from oomguard.strategy import SAME_MATH, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace


def change(job: Job, plan: Plan) -> Plan | str:
    """Reduce it by a third, as far as the weights and some cache fit: vLLM stops without."""
    if plan.engine_share is None:
        return "no vLLM shares the GPUs with the training"
    if job.engine_least is None:
        return "how much vLLM needs for this model is not known"
    share = max(job.engine_least, round(plan.engine_share * 2 / 3, 2))
    if share >= plan.engine_share:
        return "the model would not fit in a smaller share"
    return replace(plan, engine_share=share)


STRATEGY = Strategy(
    summary="give vLLM a third less of each GPU (it generates more slowly)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="no vLLM shares the GPUs with the training, or the model would not fit in a smaller "
    "share",
    repeat=True,
)
