"""`oomguard resume`: continue a run that was interrupted, or whose oomguard was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from oomguard import __version__
from oomguard.adapters.registry import adapter_named
from oomguard.cli.collect_provenance import data_of, environment_of
from oomguard.cli.console import Console
from oomguard.cli.options import RESUME, as_json, flags, run_argument, run_folder
from oomguard.cli.prepare import caps_of, ladder_of
from oomguard.cli.summary import now_at, print_summary
from oomguard.ladder.load import load_strategies, select
from oomguard.ladder.strategy_contract import Strategy
from oomguard.predict.history import record_run
from oomguard.process.report_server import sweep
from oomguard.process.start import LocalEngine
from oomguard.run.event_log import History
from oomguard.run.events import Limits, Resumed, Status
from oomguard.run.folder import RunFolder
from oomguard.run.outcome import read_outcome, write_outcome
from oomguard.run.recover import end_last_attempt
from oomguard.run.state import RunRecord, started_job
from oomguard.run.supervisor import Audience, Supervisor

FINAL = (Status.FIT, Status.EXHAUSTED, Status.FAILED)


@click.command("resume")
@run_argument
@flags(RESUME)
@as_json
def command(run: Path, grace_s: float | None, as_json: bool) -> int:
    """Resume a run from its latest checkpoint.

    RUN is the run folder, or its name under oomguard-runs.
    """
    folder, history = RunFolder.open(run_folder(run))
    console = Console(quiet_stdout=as_json)
    try:
        record = history.record
        sweep(folder.path)
        job, _ = started_job(record)
        adapter = adapter_named(job.framework)
        if record.status not in FINAL:
            record = _resume(folder, history, console, grace_s)
            lost = record_run(record)
            if lost is not None:
                console.say(lost, "yellow")
        else:
            console.say(f"nothing to resume: {record.status.value}: {record.reason}")
        outcome = read_outcome(record, adapter, folder) or write_outcome(record, adapter, folder)
    finally:
        console.close()
        folder.close()
    return print_summary(console, record, outcome, folder, as_json=as_json)


def _resume(
    folder: RunFolder, history: History, console: Console, grace_s: float | None
) -> RunRecord:
    job, limits = started_job(history.record)
    limits = limits if grace_s is None else replace(limits, grace_s=grace_s)
    adapter = adapter_named(job.framework)
    known = load_strategies(Path(limits.strategies) if limits.strategies else None)
    ladder = ladder_of(adapter, _selected(known, limits), limits.allow, known=known)
    ended, oom_kills = end_last_attempt(history.events, grace_s=limits.grace_s)
    if ended.asked or ended.killed:
        console.say(f"killed {ended.asked} leftover processes of the previous attempt")
    supervisor = Supervisor(
        adapter=adapter,
        ladder=ladder,
        # Created after the leftovers are killed: it records how much GPU memory is free.
        engine=LocalEngine(caps=caps_of(limits), monitored=limits.inside, in_place=limits.splits),
        folder=folder,
        audience=Audience(event=console.event, output=console.output, notice=console.notice),
    )
    resumed = Resumed(
        t=0.0,
        version=__version__,
        at=now_at(),
        cut_bytes=history.cut_bytes,
        grace_s=grace_s,
        environment=environment_of(job),
        data=data_of(job, adapter),
    )
    return supervisor.resume(history.events, resumed, oom_kills=oom_kills)


def _selected(known: tuple[Strategy, ...], limits: Limits) -> tuple[Strategy, ...]:
    """Return the run's strategies in its own order, including preflight ones."""
    if not limits.ladder:
        return tuple(strategy for strategy in known if strategy.preflight)
    return select(known, ",".join(limits.ladder))
