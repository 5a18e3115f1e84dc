"""Freeze the vision tower and the multimodal projector; the language model is trained on."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Part,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)

FROZEN = frozenset({Part.VISION_TOWER, Part.PROJECTOR})


def change(job: Job, plan: Plan) -> Plan | str:
    """Freeze both, where the job has them and one of them is trained."""
    if not job.multimodal:
        return "the model has no vision tower"
    if plan.frozen is None:
        return "the framework has no such setting"
    if plan.frozen >= FROZEN:
        return "both are frozen already"
    return replace(plan, frozen=plan.frozen | FROZEN)


STRATEGY = Strategy(
    summary="freeze the vision tower and the multimodal projector",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD})}),
    change=change,
    otherwise="the model has no vision tower, or both are frozen already",
)
