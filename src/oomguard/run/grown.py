"""What growing memory explains of how an attempt ended, and what helps against it. Pure."""

from __future__ import annotations

from dataclasses import replace

from oomguard.evidence.judge import CRASH_CODES
from oomguard.evidence.verdict import Cause, Confidence, Kind, Verdict, Witness
from oomguard.run.leak import Growth
from oomguard.units import show_bytes

#: Of its limit a process holds at least this share where a crash is put down to it.
FULL_SHARE = 0.9
#: PyTorch keeps a compiled kernel of oneDNN for each shape: up to 1024 in each of two caches.
BOUNDED_CACHES = "LRU_CACHE_CAPACITY=16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16"


def with_growth(
    verdict: Verdict,
    growth: Growth | None,
    *,
    returncode: int | None,
    steps_done: int,
    data_peak_bytes: int | None,
) -> Verdict:
    """Return the verdict on an attempt whose memory grew, `growth` as forecast last.

    The kernel and the log say that memory ran out, not why. A crash is an OOM where growth was to
    use up the private data of a process by then: not all code handles a failed allocation.
    """
    if growth is None:
        return verdict
    if verdict.kind.is_memory:
        root = verdict.evidence[0].witness if verdict.evidence else None
        unknown = verdict.cause is Cause.UNKNOWN and root is not Witness.INSIDE
        return replace(verdict, cause=Cause.GROWTH) if unknown else verdict
    reached_bytes = _reached(growth, steps_done, data_peak_bytes)
    said = any(f.witness in (Witness.INSIDE, Witness.LOG) for f in verdict.evidence[:1])
    if returncode not in CRASH_CODES or said or reached_bytes is None:
        return verdict
    return replace(
        verdict,
        kind=Kind.HOST_OOM,
        cause=Cause.GROWTH,
        confidence=Confidence.MEDIUM,
        root=f"{verdict.root} when growing memory had reached {show_bytes(reached_bytes)}",
    )


def _reached(growth: Growth, steps_done: int, data_peak_bytes: int | None) -> int | None:
    """Return the limit of private data, if growth has used it up; None if not, or without one."""
    limit_bytes, end = growth.limit_bytes, growth.forecast_step
    if limit_bytes is None or end is None or data_peak_bytes is None:
        return None
    full = steps_done + 1 >= end and data_peak_bytes >= FULL_SHARE * limit_bytes
    return limit_bytes if full else None


def not_the_data(growth: Growth | None, *, on_cpu: bool, resumes: bool) -> str:
    """Return why a run whose memory grows ends without a plan that fits, and what helps.

    `on_cpu` if host memory grew and the job computes there; `resumes` if it can from checkpoints.
    """
    grows = "memory grows from step to step"
    if growth is not None:
        grows = f"memory grows by {show_bytes(growth.bytes_per_step)} per step"
    if growth is not None and growth.per_shape_bytes is not None:
        grows = f"memory grows by {show_bytes(growth.per_shape_bytes)} with each new batch shape"
    lines = [f"{grows}: the data is not the cause, and less of it would only delay the end"]
    if resumes:
        lines.append(
            "With checkpoints (--checkpoint-every N) the job is resumed before memory runs out"
        )
    if on_cpu:
        lines.append(
            "If it grows with new lengths of a batch, PyTorch keeps kernels for each: "
            f"{BOUNDED_CACHES} in the environment bounds them"
        )
    return ". ".join(lines)
