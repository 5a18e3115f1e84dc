"""Halve the longest sequence that is trained on; longer samples are truncated."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
    shorter_sequence,
    tokens_lost,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Halve the sequence length, as far as samples keep their media tokens."""
    shorter = shorter_sequence(job, plan)
    return shorter if isinstance(shorter, str) else replace(plan, sequence_length=shorter)


STRATEGY = Strategy(
    summary="halve the longest sequence (cutoff_len, max_seq_length)",
    fidelity=NEW_RECIPE,
    remedies=frozenset(
        {
            Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.BATCH}),
            Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.BATCH})),
        }
    ),
    change=change,
    otherwise="no sequence length is set, it is 256 tokens or less, no sample is longer, media "
    "tokens would be cut, or how many a sample has is not known (videos, a vision tower that is "
    "not known, data that cannot be read here)",
    tell=lambda job, _before, after: tokens_lost(job, after),
    repeat=True,
)
