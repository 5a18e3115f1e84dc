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


def change(job: Job, plan: Plan) -> Plan | None:
    """Turn pinning off; without a GPU nothing is pinned."""
    if job.device is Device.CPU or not plan.pin_memory:
        return None
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
