"""Bound the tokens of a batch: only larger ones are divided, those of short samples stay whole."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Job,
    Kind,
    Plan,
    Remedy,
    Sharding,
    Strategy,
    replace,
)

#: The longest sample has at least so many times the tokens of the median one.
VARIED = 2


def change(job: Job, plan: Plan) -> Plan | str:
    """Halve the tokens of the largest batch there may be, down to the longest sample alone."""
    lengths, limit = job.lengths, plan.sequence_length
    if plan.micro_batch == 1:
        return "the micro batch is 1"
    undivided = _undivided(job, plan)
    if undivided is not None:
        return undivided
    if lengths is None:
        return "how long the samples are is not known"
    longest, median = (min(one, limit or one) for one in (lengths.longest, lengths.median))
    if lengths.filled or longest < VARIED * median:
        return "the samples are about as long as each other"
    now = plan.token_bound or plan.micro_batch * longest
    if now <= longest:
        return f"the bound is the longest sample alone already ({longest} tokens)"
    return replace(plan, token_bound=max(longest, now // 2))


def _undivided(job: Job, plan: Plan) -> str | None:
    """Return why the batches of a job are not divided."""
    if not job.divides:
        return "the batches of this job are not divided (--no-in-place, or not by the Trainer)"
    if job.compares_samples or job.group is not None:
        return "the loss compares the samples of a batch"
    if plan.sharding not in (None, Sharding.NONE):
        return f"ranks wait for each other in the forward pass ({plan.sharding.value})"
    return None


def tell(_job: Job, _before: Plan, after: Plan) -> str:
    """Return the bound, and who keeps it."""
    return f"batches of more than {after.token_bound} tokens are divided by oomguard as they come"


STRATEGY = Strategy(
    summary="halve the tokens that go through the model at once; short samples stay together",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise=(
        "the samples are about as long as each other, their lengths are not known, the micro batch "
        "is 1, or the batches of the job cannot be divided (another loop than the Trainer's, "
        "shards, a loss that compares samples, --no-in-place)"
    ),
    repeat=True,
    tell=tell,
)
