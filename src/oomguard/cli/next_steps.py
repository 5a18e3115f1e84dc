"""What a user can do after a diagnosis: strategies that apply, or evidence to gather."""

from __future__ import annotations

from oomguard.evidence.settle import what_settles
from oomguard.evidence.verdict import Cause, Verdict
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


def next_steps(verdict: Verdict) -> list[str]:
    """Return what to do next, the most useful first; nothing where the failure is not of memory."""
    settles = what_settles(verdict)
    steps = [f"to be sure: {settles}"] if settles else []
    if any(finding.signature == _CACHE_SHARE for finding in verdict.evidence[:1]):
        return [*steps, _LARGER_SHARE, _COLOCATED]
    if not verdict.kind.is_memory:
        return steps
    if verdict.cause in _BY_CAUSE:
        steps.append(_BY_CAUSE[verdict.cause])
    applies = [
        strategy
        for strategy in load_strategies()
        if any(remedy.cures(verdict.kind, verdict.phase) for remedy in strategy.remedies)
    ]
    shown = applies[:_SHOWN]
    steps += [f"{x.id}: {x.summary} ({x.fidelity.value})" for x in shown]
    if applies:
        ids = ",".join(strategy.id for strategy in shown)
        steps.append(f"oomguard launch --ladder {ids} -- COMMAND tries these in order")
    return steps
