"""What is known to be of no use against an OOM, from the attempts so far. Pure."""

from __future__ import annotations

from itertools import pairwise

from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.job.plan import Plan, differences
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder
from oomguard.ladder.strategy_contract import Strategy
from oomguard.process.limits import CapBy
from oomguard.run.state import Attempt, RunRecord
from oomguard.units import show_bytes

EACH_PROCESS = (
    "the limit counts each process by itself, so fewer of them leave no more room to the one that "
    "ran out"
)
#: At the same allocation two attempts hold the same, up to this share of it. Where one layer after
#: another makes an allocation of the same size, one that gets further holds something else.
SAME_SHARE = 0.02
#: Fields of a plan that decide what a training step holds for its batch.
_OF_BATCH = frozenset(
    {
        "micro_batch", "accumulation", "sequence_length", "overlong", "image_pixels",
        "video_pixels", "checkpointing", "token_bound",
    }
)  # fmt: skip
OF_BATCH = (
    "it changes only what a step holds for its batch, and a smaller micro batch changed nothing at "
    "the allocation that fails"
)


def ruled_out(record: RunRecord, why: Verdict, ladder: Ladder) -> dict[str, str]:
    """Return the strategies that cannot free what ran out, each with the reason."""
    return {**_fewer_processes(record, why, ladder), **_idle(record, why, ladder)}


def had_no_effect(before: Attempt, after: Attempt) -> str | None:
    """Return why the change between two attempts had no effect, None if it may have had one.

    The same allocation failed, with as much in memory as before the change.
    """
    earlier, now = _oom(before), _oom(after)
    strategies = tuple(step.strategy for step in after.spec.steps)
    if not strategies or after.spec.path != (*before.spec.path, *strategies):
        return None
    if earlier is None or now is None or not _is_same(earlier, now):
        return None
    return (
        f"had no effect: attempts {before.number} and {after.number} failed at the same allocation "
        f"of {show_bytes(now.requested_bytes or 0)}, with {show_bytes(_held(now) or 0)} in use"
    )


def nothing_had_effect(record: RunRecord) -> str | None:
    """Return that no change of several had an effect, None if one may have had."""
    effects = [had_no_effect(*pair) for pair in pairwise(record.attempts)]
    failed = _oom(record.attempts[-1])
    if len(effects) < 2 or None in effects or failed is None:  # noqa: PLR2004 # one shows little
        return None
    return (
        f"none of {len(effects)} changes had an effect on the allocation of "
        f"{show_bytes(failed.requested_bytes or 0)} that fails. The job seems to ignore its "
        "settings: change them where the job takes them from, and relaunch"
    )


def _idle(record: RunRecord, why: Verdict, ladder: Ladder) -> dict[str, str]:
    """Return the strategies that left the allocation failing which fails now, and those like them.

    Once another allocation fails, they may help again.
    """
    root, found = root_finding(why), dict[str, str]()
    for before, after in pairwise(record.attempts):
        reason, failed = had_no_effect(before, after), _oom(after)
        if reason is None or failed is None or root is None or not _is_same(failed, root):
            continue
        steps = after.spec.steps
        found |= {step.strategy: f"it {reason}" for step in steps}
        fields = {change.field for step in steps for change in step.changes}
        if "micro_batch" in fields and record.job is not None:
            alike = _of_batch(record.job, after.spec.plan, ladder.strategies)
            found = {**dict.fromkeys(alike, OF_BATCH), **found}
    return found


def _of_batch(job: Job, plan: Plan, strategies: tuple[Strategy, ...]) -> list[str]:
    """Return the strategies that change only what a step holds for its batch."""
    applied = [(one.id, one.applied(job, plan)) for one in strategies]
    return [
        name
        for name, changed in applied
        if isinstance(changed, Plan)
        and {change.field for change in differences(plan, changed)} <= _OF_BATCH
    ]


def _is_same(one: Finding, other: Finding) -> bool:
    """Return whether two processes failed at the same allocation, holding the same."""
    held, other_held, size = _held(one), _held(other), one.requested_bytes
    if held is None or other_held is None or size is None or _place(one) != _place(other):
        return False
    return abs(held - other_held) <= SAME_SHARE * size


def _held(found: Finding) -> int | None:
    on_gpu = found.kind is Kind.DEVICE_OOM
    return found.allocated_bytes if on_gpu else found.data_bytes


def _fewer_processes(record: RunRecord, why: Verdict, ladder: Ladder) -> dict[str, str]:
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
