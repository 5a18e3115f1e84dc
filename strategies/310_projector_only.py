"""Train the multimodal projector alone; vision tower and language model are frozen."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Part,
    Plan,
    Remedy,
    Strategy,
    Tuning,
    replace,
)

FROZEN = frozenset({Part.VISION_TOWER, Part.LANGUAGE_MODEL})


def change(job: Job, plan: Plan) -> Plan | str:
    """Freeze all but the projector of a model that is trained in full."""
    if not job.multimodal:
        return "the model has no projector"
    if plan.frozen is None:
        return "the framework has no such setting"
    if plan.tuning is not Tuning.FULL:
        return "this is not full fine-tuning"
    return "it is trained alone already" if plan.frozen == FROZEN else replace(plan, frozen=FROZEN)


STRATEGY = Strategy(
    summary="train the multimodal projector alone",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="the model has no projector, it is trained alone already, or this is not full"
    " fine-tuning",
)
