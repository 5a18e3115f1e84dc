"""What is known to be of no use against an OOM, from the attempts so far. Pure."""

from __future__ import annotations

from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.ladder.climb import Ladder
from oomguard.process.limits import CapBy
from oomguard.run.state import Attempt, RunRecord
from oomguard.units import show_bytes

EACH_PROCESS = (
    "the limit counts each process by itself, so fewer of them leave no more room to the one that "
    "ran out"
)


def ruled_out(record: RunRecord, why: Verdict, ladder: Ladder) -> dict[str, str]:
    """Return the strategies that cannot free what ran out, each with the reason."""
    limits, root = record.limits, root_finding(why)
    by_process = limits is not None and limits.host_memory_by == CapBy.RLIMIT
    refused = root is not None and root.witness is not Witness.KERNEL
    if not (by_process and refused and why.kind is Kind.HOST_OOM):
        return {}
    return {one.id: EACH_PROCESS for one in ladder.strategies if one.fewer_processes}


def without_effect(record: RunRecord) -> str | None:
    """Return why the latest change of the micro batch had no effect, None if it may have had one.

    The same allocation failed on the same batch as before it: the job does not take the setting.
    """
    if len(record.attempts) < 2:  # noqa: PLR2004 # there is none before it
        return None
    before, last = record.attempts[-2:]
    changes = [(step.strategy, change) for step in last.spec.steps for change in step.changes]
    sizes = [(name, change) for name, change in changes if change.field == "micro_batch"]
    earlier, now = _oom(before), _oom(last)
    if not sizes or sizes[0][1].before != before.spec.plan.micro_batch:
        return None
    if earlier is None or now is None or now.batch is None or _place(earlier) != _place(now):
        return None
    size, batch = show_bytes(now.requested_bytes or 0), " x ".join(map(str, now.batch))
    (_, first), (strategy, latest) = sizes[0], sizes[-1]
    return (
        f"{strategy} had no effect: with a micro batch of {latest.after} as of "
        f"{first.before}, the same allocation of {size} failed on a batch of {batch}. The job "
        "seems to ignore the setting: change the batch where the job takes it from, and relaunch"
    )


def _oom(attempt: Attempt) -> Finding | None:
    """Return what a process of the job reported of the OOM that ended an attempt."""
    root = root_finding(attempt.verdict) if attempt.verdict and attempt.ran_out else None
    return root if root is not None and root.witness is Witness.INSIDE else None


def _place(found: Finding) -> tuple[object, ...]:
    return found.kind, found.phase, found.step, found.requested_bytes, found.batch


def root_finding(verdict: Verdict) -> Finding | None:
    """Return the finding that a verdict rests on."""
    return verdict.evidence[0] if verdict.evidence else None
