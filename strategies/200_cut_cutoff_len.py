"""Halve the longest sequence that is trained on; longer samples are truncated."""

from oomguard.strategy import NEW_RECIPE, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace

#: Below this many tokens a fine-tune rarely teaches anything; LitGPT's users start there.
SHORTEST = 256


def change(job: Job, plan: Plan) -> Plan | None:
    """Halve the sequence length down to 256 tokens.

    Not for a multimodal job: truncating a sample below its own image tokens breaks it.
    """
    if plan.sequence_length is None or job.multimodal or plan.sequence_length <= SHORTEST:
        return None
    return replace(plan, sequence_length=max(SHORTEST, plan.sequence_length // 2))


STRATEGY = Strategy(
    summary="halve the longest sequence (cutoff_len, max_seq_length)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="no sequence length is set, it is 256 tokens or less, or samples hold media tokens",
    repeat=True,
)
