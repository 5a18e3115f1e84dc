"""`oomguard runs`: list runs, and how each ended."""

from __future__ import annotations

from pathlib import Path

import click

from oomguard.cli.options import RUNS, as_json
from oomguard.cli.output import echo, print_json
from oomguard.cli.plan_text import counted
from oomguard.cli.run_lines import STATUSES
from oomguard.run.past_runs import PastRun, past_runs


@click.command("runs")
@click.argument("folder", default=RUNS, type=click.Path(path_type=Path))
@as_json
def command(folder: Path, as_json: bool) -> None:
    """List the runs in a folder, the newest first.

    FOLDER is what `launch` was given with --runs (default: oomguard-runs).
    """
    found = past_runs(folder)
    if as_json:
        print_json({"runs": found})
        return
    if not found:
        echo(f"no runs in {folder}")
    width = max((len(run.name) for run in found), default=0)
    for run in found:
        echo(f"{run.name:<{width}}  {run.at or '':<25}  {_how(run)}")


def _how(run: PastRun) -> str:
    if run.problem is not None:
        return run.problem
    ended = STATUSES[run.status] if run.status else "not finished"
    return f"{run.framework}: {ended}, in {counted(run.attempts, 'attempt')}"
