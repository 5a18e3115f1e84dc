"""What a user can do after a diagnosis: strategies that apply, or evidence to gather."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.adapters.contract import Adapter
from oomguard.adapters.examples import ACCUMULATION, MICRO_BATCH, example_of
from oomguard.cli.spelled_changes import spelled
from oomguard.evidence.settle import what_settles
from oomguard.evidence.verdict import Cause, Verdict
from oomguard.job.training_job import Job
from oomguard.ladder.load import load_strategies

_SHOWN = 5  # strategies; the rest is in `oomguard ladder`
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
_BY_CAUSE = {
    Cause.FRAGMENTATION: "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment",
    Cause.OTHER_PROCESS: "nvidia-smi, and end the process that holds the memory",
}


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
    if verdict.cause in _BY_CAUSE:
        steps.append(_BY_CAUSE[verdict.cause])
    return [*steps, *_strategies(verdict, failed or Failed())]


def _strategies(verdict: Verdict, failed: Failed) -> list[str]:
    """Return the strategies that apply, with the framework's settings where it is known."""
    adapter = failed.adapter
    job = failed.job or (example_of(adapter) if adapter else None)
    applies = []
    for strategy in load_strategies():
        if not any(remedy.cures(verdict.kind, verdict.phase) for remedy in strategy.remedies):
            continue
        settings = spelled(strategy, adapter, job) if adapter and job else []
        if settings or failed.job is None:
            applies.append((strategy, settings))
    # Those that the framework has a setting for come first, each in the ladder's order.
    shown = sorted(applies, key=lambda row: not row[1])[:_SHOWN]
    steps = []
    for strategy, settings in shown:
        steps.append(f"{strategy.id}: {strategy.summary} ({strategy.fidelity.value})")
        steps += [f"    {', '.join(settings)}"] if settings else []
    if adapter and any(settings for _, settings in shown):
        steps.append(_whose(adapter, failed.job))
    if shown:
        ids = ",".join(strategy.id for strategy, _ in shown)
        steps.append(f"oomguard launch --ladder {ids} -- COMMAND tries these in order")
    return steps


def _whose(adapter: Adapter, job: Job | None) -> str:
    """Return what the settings that are shown are those of."""
    if job is not None:
        return f"settings of {adapter.title}, for this config"
    return (
        f"settings of {adapter.title}, for example from a micro batch of {MICRO_BATCH} and"
        f" {ACCUMULATION} accumulation steps; --config FILE shows yours"
    )
