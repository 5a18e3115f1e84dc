"""Halve the micro batch and give the accumulation what it loses: the global batch stays."""

from oomguard.strategy import (
    SAME_MATH,
    SAME_RECIPE,
    TRAINING,
    Fidelity,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    divisor_at_most,
    replace,
)


def change(_job: Job, plan: Plan) -> Plan | str:
    """Use the largest divisor of the rank's batch that is at most half the micro batch."""
    if plan.micro_batch == 1:
        return "the micro batch is 1"
    micro = divisor_at_most(plan.rank_batch, plan.micro_batch // 2)
    return replace(plan, micro_batch=micro, accumulation=plan.rank_batch // micro)


def _cost(job: Job) -> Fidelity | None:
    """Return the cost where a sample's loss depends on the others of its micro batch."""
    return SAME_RECIPE if job.compares_samples else None


STRATEGY = Strategy(
    summary="halve the micro batch, double the accumulation",
    fidelity=SAME_MATH,
    # Some frameworks evaluate with the micro batch; loader workers hold batches in shared memory;
    # collating a batch may take more than the batch itself.
    remedies=frozenset(
        {
            Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.BATCH, Phase.EVAL}),
            Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.BATCH})),
            Remedy(kind=Kind.SHM_OOM),
            Remedy(kind=Kind.PINNED_OOM),
        }
    ),
    change=change,
    otherwise="the micro batch is 1",
    repeat=True,
    cost_for=_cost,
)
