"""Compute the reference policy's log-probabilities before training, which then needs it no more."""

from oomguard.strategy import SAME_MATH, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace


def change(job: Job, plan: Plan) -> Plan | str:
    """Precompute them: without an adapter a whole second model is gone from the training step."""
    if plan.precompute_reference is None:
        return "the method compares with no frozen policy, or the framework has no such setting"
    if plan.precompute_reference:
        return "they are computed before training already"
    if job.multimodal:
        return "the data has images"
    return replace(plan, precompute_reference=True)


STRATEGY = Strategy(
    summary="compute the reference's log-probabilities before training (one more pass over the "
    "data)",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="they are computed before training already, the data has images, or the method "
    "compares with no frozen policy",
)
