"""Load batches into ordinary host memory instead of page-locked memory."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Device,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Turn pinning off; without a GPU nothing is pinned."""
    if plan.pin_memory is None:
        return "the framework does not say whether it is pinned"
    if job.device is Device.CPU:
        return "nothing is pinned without a GPU"
    if not plan.pin_memory:
        return "it is not pinned"
    return replace(plan, pin_memory=False)


STRATEGY = Strategy(
    summary="load batches into unpinned memory",
    fidelity=SAME_MATH,
    # WSL can pin little, and then reports "CUDA error: out of memory" (WSL#8447).
    remedies=frozenset(
        {
            Remedy(kind=Kind.PINNED_OOM),
            Remedy(kind=Kind.HOST_OOM, phases=TRAINING | {Phase.BATCH, Phase.EVAL, Phase.SAVE}),
        }
    ),
    change=change,
    otherwise="it is not pinned already, or the framework does not say",
)
