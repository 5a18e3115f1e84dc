"""The one long sample whose batch ran out of memory. Pure."""

from __future__ import annotations

from oomguard.evidence.verdict import Cause, Verdict
from oomguard.run.state import Attempt, RunRecord

#: A batch as wide as this share of the longest sample holds it: lengths are counted without the
#: template, or guessed.
NEARLY = 0.8
#: How many times as long as the median the longest sample is where it stands out.
STANDS_OUT = 2


def long_sample(record: RunRecord, attempt: Attempt) -> str | None:
    """Return which sample made the batch that ran out of memory so large, None if none stands out.

    The lengths of the samples must be known, and the batch must be about as wide as the longest.
    """
    if record.job is None or record.job.multimodal:  # the largest tensor is that of the media
        return None
    if attempt.verdict is not None and attempt.verdict.cause is Cause.GROWTH:
        return None
    lengths, width = record.job.lengths, _width(attempt.verdict)
    if lengths is None or lengths.filled or width is None or lengths.longest_at is None:
        return None
    limit = attempt.spec.plan.sequence_length
    longest = min(lengths.longest, limit) if limit else lengths.longest
    if longest < STANDS_OUT * lengths.median or width < NEARLY * longest:
        return None
    return (
        f"the batch was {width} tokens wide for one long sample: {lengths.longest_at} has "
        f"{lengths.longest} tokens, half of the samples at most {lengths.median} "
        f"(counted by {lengths.counted_by})"
    )


def _width(verdict: Verdict | None) -> int | None:
    """Return the width of the batch that ran out of memory: its last dimension."""
    if verdict is None or not verdict.kind.is_memory:
        return None
    shapes = [one.batch for one in verdict.evidence if one.kind.is_memory and one.batch]
    return shapes[0][-1] if shapes and len(shapes[0]) > 1 else None
