"""How much memory an exhausted run lacked, and what would help beyond its ladder. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from oomguard.estimate.cards import CARDS
from oomguard.evidence.figures import Stated, read_figures
from oomguard.evidence.settle import BY_CAUSE
from oomguard.evidence.verdict import Cause, Finding, Kind, Verdict
from oomguard.job.plan import Sharding
from oomguard.job.training_job import Device, Job
from oomguard.ladder.strategy_contract import Untried
from oomguard.process.limits import CapBy
from oomguard.run.events import Limits, Predicted, Status
from oomguard.run.state import Attempt, RunRecord, started_job
from oomguard.units import show_bytes


class Bound(str, Enum):
    """What is known of a number of bytes."""

    AT_LEAST = "at least"  # the failed allocation lacked that much; what comes after it is unknown
    ABOUT = "about"  # by the predicted peak
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What the latest attempt that ran out of memory lacked.

    `missing_bytes` is None where `bound` is unknown; `how` is where the figure is from, or why
    there is none. `untried` are steps that the options of the run ruled out, `helps` what would
    help besides, the most useful first.
    """

    attempt: int
    missing_bytes: int | None
    bound: Bound
    how: str
    untried: tuple[Untried, ...] = ()
    helps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Missing:
    """`needed_bytes` is the capacity that would be enough, or more than enough if `AT_LEAST`."""

    bound: Bound
    how: str
    missing_bytes: int | None = None
    needed_bytes: int | None = None


def shortfall(record: RunRecord) -> Shortfall | None:
    """Return what an exhausted run lacked; None for a run that ended otherwise."""
    failed = next((one for one in reversed(record.attempts) if one.ran_out), None)
    if record.status is not Status.EXHAUSTED or failed is None or failed.verdict is None:
        return None
    job, limits = started_job(record)
    missing = _missing(failed, failed.verdict, limits, record.predicted_for(failed.spec.plan))
    return Shortfall(
        attempt=failed.number,
        missing_bytes=missing.missing_bytes,
        bound=missing.bound,
        how=missing.how,
        untried=record.untried,
        helps=tuple(_helps(job, limits, failed, failed.verdict, missing)),
    )


# --- How many bytes ---


def _missing(
    failed: Attempt, verdict: Verdict, limits: Limits, predicted: Predicted | None
) -> _Missing:
    if verdict.cause is Cause.FRAGMENTATION:
        how = "the allocator held enough free memory, but not in one piece"
        return _Missing(bound=Bound.UNKNOWN, how=how)
    if verdict.cause is Cause.GROWTH:
        how = "memory grows while the job trains, so that more of it would only last longer"
        return _Missing(bound=Bound.UNKNOWN, how=how)
    if verdict.kind is Kind.DEVICE_OOM:
        measured = _on_device(verdict, limits.gpu_memory_bytes)
        expected = _by_prediction(verdict, limits.gpu_memory_bytes, predicted)
        larger = expected and (expected.missing_bytes or 0) > (measured.missing_bytes or 0)
        return expected if expected and larger else measured
    if verdict.kind is Kind.HOST_OOM:
        return _on_host(failed, verdict, limits)
    return _Missing(bound=Bound.UNKNOWN, how="this failure does not report how much was free")


def _on_device(verdict: Verdict, cap_bytes: int | None) -> _Missing:
    """Return what the failed allocation lacked, from the figures in its message."""
    requested = verdict.requested_bytes
    if requested is None:
        how = "the error does not state the size of the allocation that failed"
        return _Missing(bound=Bound.UNKNOWN, how=how)
    stated = _stated(verdict)
    free, of = (stated.free_bytes, verdict.capacity_bytes) if stated else (None, None)
    if cap_bytes is not None:
        held = stated.reserved_bytes if stated else None
        free, of = (None if held is None else max(0, cap_bytes - held)), cap_bytes
    if free is None or free >= requested:
        how = (
            f"an allocation of {show_bytes(requested)} failed, and what was free then is not stated"
            if free is None
            else f"{show_bytes(free)} was free for the {show_bytes(requested)} that failed"
        )
        return _Missing(bound=Bound.UNKNOWN, how=how)
    missing = requested - free
    return _Missing(
        bound=Bound.AT_LEAST,
        how=f"{show_bytes(requested)} was requested with {show_bytes(free)} free; what training "
        "allocates after that is not known",
        missing_bytes=missing,
        needed_bytes=of + missing if of else None,
    )


def _stated(verdict: Verdict) -> Stated | None:
    """Return the figures of the error that the verdict rests on."""
    texts = [found.text for found in verdict.evidence if _is_root(found, verdict)]
    stated = [read_figures(text) for text in texts]
    whole = (figures for figures in stated if figures.free_bytes is not None)
    return next(whole, stated[0] if stated else None)


def _is_root(found: Finding, verdict: Verdict) -> bool:
    same = found.requested_bytes == verdict.requested_bytes
    return found.kind is verdict.kind and same and not found.handled


def _by_prediction(
    verdict: Verdict, cap_bytes: int | None, predicted: Predicted | None
) -> _Missing | None:
    """Return how far the predicted peak is above the capacity, None if it is not."""
    if predicted is None:
        return None
    # A cap bounds what the allocator reserves; the CUDA context comes on top.
    peak = predicted.expected_bytes if cap_bytes is None else predicted.reserved_bytes
    capacity = verdict.capacity_bytes if cap_bytes is None else cap_bytes
    if capacity is None or peak <= capacity:
        return None
    return _Missing(
        bound=Bound.ABOUT,
        how=f"a peak of {show_bytes(peak)} is predicted for this plan, on {show_bytes(capacity)}",
        missing_bytes=peak - capacity,
        needed_bytes=peak,
    )


def _on_host(failed: Attempt, verdict: Verdict, limits: Limits) -> _Missing:
    """Return what was missing under a limit on each process; a kill states no sizes."""
    requested, cap = verdict.requested_bytes, limits.host_memory_bytes
    if requested is None:
        return _Missing(
            bound=Bound.UNKNOWN, how="neither an error nor a kill states how much was requested"
        )
    held = failed.data_peak_bytes
    if cap is None or limits.host_memory_by != CapBy.RLIMIT or held is None:
        how = f"an allocation of {show_bytes(requested)} failed, and what was free is not known"
        return _Missing(bound=Bound.UNKNOWN, how=how)
    missing = held + requested - cap
    if missing <= 0:
        size = show_bytes(requested)
        how = f"the measured peak of {show_bytes(held)} leaves room for the {size} that failed"
        return _Missing(bound=Bound.UNKNOWN, how=how)
    return _Missing(
        bound=Bound.ABOUT,
        how=f"{show_bytes(requested)} was requested with a peak of {show_bytes(held)} private data",
        missing_bytes=missing,
        needed_bytes=cap + missing,
    )


# --- What helps ---


def _helps(
    job: Job, limits: Limits, failed: Attempt, verdict: Verdict, missing: _Missing
) -> Iterator[str]:
    if verdict.cause in BY_CAUSE:
        yield BY_CAUSE[verdict.cause]
    if verdict.kind is Kind.DEVICE_OOM and job.device is Device.CUDA:
        yield _larger_gpu(limits, missing)
        yield from _more_gpus(job, failed)
        yield "a smaller model"
    elif verdict.kind is Kind.SHM_OOM:
        yield "a larger /dev/shm (in Docker: --shm-size 8g, or --ipc host)"
    else:
        yield _more_host_memory(limits, missing)


def _larger_gpu(limits: Limits, missing: _Missing) -> str:
    sure = missing.bound is Bound.ABOUT
    size = f"{'about' if sure else 'more than'} {show_bytes(missing.needed_bytes or 0)}"
    if limits.gpu_memory_bytes is not None:
        return f"--gpu-memory of {size}" if missing.needed_bytes else "a higher --gpu-memory"
    if not missing.needed_bytes:
        return "a GPU with more memory"
    larger = [card for card in CARDS if card.usable_bytes >= missing.needed_bytes]
    least = min(larger, key=lambda card: card.usable_bytes, default=None)
    if least is None:
        return f"no GPU in the table has {size}"
    return f"a GPU with {size}, such as {least.name} ({show_bytes(least.usable_bytes)} usable)"


def _more_gpus(job: Job, failed: Attempt) -> Iterator[str]:
    sharding = failed.spec.plan.sharding
    if sharding is None:
        return
    if sharding is Sharding.NONE:
        yield "several GPUs: sharding (ZeRO, FSDP) divides weights, gradients and states over them"
    else:
        yield f"more GPUs: {sharding.value} divides what it shards over {job.world.size} now"


def _more_host_memory(limits: Limits, missing: _Missing) -> str:
    if limits.host_memory_bytes is None:
        return "a machine with more host memory"
    if missing.needed_bytes is None:
        return f"--host-memory above {show_bytes(limits.host_memory_bytes)}"
    return f"--host-memory of about {show_bytes(missing.needed_bytes)}"
