"""`oomguard show`: show a run, also one that has not ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from oomguard import present
from oomguard.cli.options import as_json, report_place
from oomguard.cli.output import echo, print_json
from oomguard.cli.plan_text import show_plan
from oomguard.cli.report_text import markdown
from oomguard.cli.run_lines import exit_line, job_line
from oomguard.run.past_runs import stored_record, stored_report
from oomguard.run.report import attempts_of, to_json
from oomguard.run.state import Attempt, RunRecord


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@as_json
def command(run: Path, as_json: bool) -> None:
    """Show a run: how it ended and what was changed, or how far it is.

    RUN is a run folder, its name under oomguard-runs, or a fit-report.json.
    """
    place = report_place(run)
    record = None if present.is_file(place) else stored_record(place)
    if record is not None:
        if as_json:
            print_json(_document(record))
            return
        for line in _lines(record):
            echo(line)
        return
    report = stored_report(place)
    if as_json:
        print_json(to_json(report))
        return
    for line in markdown(report):
        echo(line)


def _document(record: RunRecord) -> dict[str, object]:
    return {
        "run": record.run,
        "at": record.at,
        "status": None,
        "framework": record.job.framework if record.job else None,
        "attempts": attempts_of(record),
    }


def _lines(record: RunRecord) -> Iterator[str]:
    yield f"{record.run}: not finished, started {record.at}"
    if record.job is not None:
        yield job_line(record.job)
    for attempt in record.attempts:
        asked = record.job.asked if record.job else None
        yield f"attempt {attempt.number}: {show_plan(attempt.spec.plan, asked)}"
        yield f"  {_state(attempt, record)}"


def _state(attempt: Attempt, record: RunRecord) -> str:
    if attempt.verdict is not None:
        return exit_line(attempt, attempt.verdict, record.limits)
    return f"in {attempt.phase.value}, after {attempt.steps_done} optimizer steps"
