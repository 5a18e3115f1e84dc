"""Halve the longest sequence, and train on what is cut off a text as further samples."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Overlong,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
    shorter_sequence,
    tokens_lost,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Chunk, where the framework can; texts that are chunked already are cut by the next rung."""
    if plan.overlong is None:
        return "the framework has no such setting"
    if plan.overlong is Overlong.CHUNKED:
        return "texts are chunked already"
    shorter = shorter_sequence(job, plan)
    if isinstance(shorter, str):
        return shorter
    return replace(plan, sequence_length=shorter, overlong=Overlong.CHUNKED)


def tell(job: Job, _before: Plan, after: Plan) -> str:
    """Return that nothing is lost, and what such a sample lacks."""
    return f"{tokens_lost(job, after)}, though without what stood before it"


STRATEGY = Strategy(
    summary="halve the longest sequence, and train on the rest of a text as further samples",
    fidelity=NEW_RECIPE,
    remedies=frozenset(
        {
            Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.BATCH}),
            Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.BATCH})),
        }
    ),
    change=change,
    otherwise="texts are chunked already, or the sequence cannot be cut (see cut_cutoff_len)",
    tell=tell,
)
