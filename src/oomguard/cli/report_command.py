"""`oomguard report`: print what a run tried and changed."""

from __future__ import annotations

from pathlib import Path

import click

from oomguard.cli.options import run_argument, run_folder
from oomguard.cli.output import echo, print_json
from oomguard.cli.report_text import markdown
from oomguard.run.past_runs import stored_report
from oomguard.run.report import to_json


@click.command("report")
@run_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "json"]),
    default="md",
    help="md: Markdown, short enough for an issue (default); json: the whole fit-report.",
)
def command(run: Path, form: str) -> None:
    """Print what a run tried and changed, for an issue or a pull request.

    RUN is the run folder, or its name under oomguard-runs.
    """
    report = stored_report(run_folder(run))
    if form == "json":
        print_json(to_json(report))
        return
    for line in markdown(report):
        echo(line)
