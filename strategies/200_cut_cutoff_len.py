"""Halve the longest sequence that is trained on; longer samples are truncated."""

from oomguard.strategy import NEW_RECIPE, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace

#: Below this many tokens a fine-tune rarely teaches anything; LitGPT's users start there.
SHORTEST = 256


def change(job: Job, plan: Plan) -> Plan | None:
    """Halve the sequence length down to 256 tokens, and further at once while no sample is cut.

    A multimodal sample must keep its own media tokens (`Image features and image tokens do not
    match` otherwise), so without knowing them such a job is not cut.
    """
    least = _least(job)
    if plan.sequence_length is None or least is None or plan.sequence_length <= least:
        return None
    shorter = max(least, plan.sequence_length // 2)
    while shorter > least and not _cuts(job, shorter):
        shorter = max(least, shorter // 2)
    return replace(plan, sequence_length=shorter) if _cuts(job, shorter) else None


def _least(job: Job) -> int | None:
    media = job.lengths.least if job.lengths else 0
    return None if job.multimodal and media == 0 else max(SHORTEST, media)


def _cuts(job: Job, limit: int) -> bool:
    """Whether memory follows the limit: not where every sample is shorter than it."""
    known = job.lengths
    return known is None or known.filled or (known.at_most or known.longest) > limit


def tell(job: Job, _before: Plan, after: Plan) -> str:
    """Say what share of the tokens the cut loses."""
    if job.lengths is None or after.sequence_length is None:
        return ""
    if job.lengths.chunked:
        return "loses no token: what is cut off is trained on as another sample"
    share = job.lengths.lost(after.sequence_length)
    return f"loses {share:.1%} of the tokens (counted by {job.lengths.counted_by})"


STRATEGY = Strategy(
    summary="halve the longest sequence (cutoff_len, max_seq_length)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="no sequence length is set, it is 256 tokens or less, no sample is longer, or media "
    "tokens would be cut",
    tell=tell,
    repeat=True,
)
