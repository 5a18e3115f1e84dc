"""What a user can do after a diagnosis: strategies that apply, or evidence to gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oomguard.evidence.settle import BY_CAUSE, what_settles
from oomguard.evidence.verdict import Verdict
from oomguard.job.training_job import Job

if TYPE_CHECKING:
    from oomguard.adapters.contract import Adapter

_CACHE_SHARE = "kv-cache-share"
#: The engine wants another share of the GPU; no smaller training batch gives it one.
_LARGER_SHARE = (
    "a larger share for the engine (gpu_memory_utilization, --mem-fraction-static) or a shorter"
    " max_model_len"
)
_COLOCATED = (
    "where training shares the GPU (vllm_mode: colocate): vllm_gpu_memory_utilization up,"
    " vllm_enable_sleep_mode: true, or per_device_train_batch_size down"
)


@dataclass(frozen=True, slots=True)
class Failed:
    """The job that failed, as far as it is known: its framework, and perhaps the job itself."""

    adapter: Adapter | None = None
    job: Job | None = None


def next_steps(verdict: Verdict, failed: Failed | None = None) -> list[str]:
    """Return what to do next, the most useful first; nothing where the failure is not of memory."""
    settles = what_settles(verdict)
    steps = [f"to be sure: {settles}"] if settles else []
    if any(finding.signature == _CACHE_SHARE for finding in verdict.evidence[:1]):
        return [*steps, _LARGER_SHARE, _COLOCATED]
    if not verdict.kind.is_memory:
        return steps
    if verdict.cause in BY_CAUSE:
        steps.append(BY_CAUSE[verdict.cause])
    from oomguard.cli.strategy_steps import strategy_steps  # noqa: PLC0415  brings all adapters

    return [*steps, *strategy_steps(verdict, failed or Failed())]
