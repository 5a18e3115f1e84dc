"""Load batches into ordinary host memory instead of page-locked memory."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)


def change(_job: Job, plan: Plan) -> Plan | None:
    """Turn pinning off."""
    return replace(plan, pin_memory=False) if plan.pin_memory else None


STRATEGY = Strategy(
    summary="load batches into memory that is not pinned",
    fidelity=SAME_MATH,
    # WSL can pin little, and then reports "CUDA error: out of memory" (WSL#8447).
    remedies=frozenset(
        {Remedy(kind=Kind.PINNED_OOM), Remedy(kind=Kind.HOST_OOM, phases=TRAINING | {Phase.EVAL})}
    ),
    change=change,
    otherwise="it is not pinned already, or the framework does not say",
)
