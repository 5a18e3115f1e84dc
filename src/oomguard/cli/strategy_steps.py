"""The strategies that apply to a diagnosis, with the settings of the job's framework."""

from __future__ import annotations

from oomguard.adapters.contract import Adapter
from oomguard.adapters.examples import ACCUMULATION, MICRO_BATCH, example_of
from oomguard.cli.next_steps import Failed
from oomguard.cli.spelled_changes import spelled
from oomguard.evidence.verdict import Verdict
from oomguard.job.training_job import Job
from oomguard.ladder.load import load_strategies

_SHOWN = 5  # strategies; the rest is in `oomguard ladder`


def strategy_steps(verdict: Verdict, failed: Failed) -> list[str]:
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
