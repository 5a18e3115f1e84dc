"""Load batches with fewer worker processes, each of which holds some of them."""

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


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve the workers; after one comes none, and the training process loads by itself."""
    if plan.loader_workers is None:
        return "the framework does not say how many there are"
    if not plan.loader_workers:
        return "the training process loads by itself"
    return replace(plan, loader_workers=plan.loader_workers // 2)


STRATEGY = Strategy(
    summary="halve the loader's worker processes",
    fidelity=SAME_MATH,
    # Workers hold batches in /dev/shm, and copy the data set page by page (pytorch#13246).
    remedies=frozenset(
        {
            Remedy(kind=Kind.SHM_OOM),
            Remedy(kind=Kind.HOST_OOM, phases=TRAINING | {Phase.BATCH, Phase.EVAL, Phase.SAVE}),
        }
    ),
    change=change,
    otherwise="there are none, or the framework does not say",
    repeat=True,
    fewer_processes=True,
)
