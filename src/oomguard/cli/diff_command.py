"""`oomguard diff`: show what differs between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from oomguard.cli.difference_lines import difference_line
from oomguard.cli.options import as_json, report_place
from oomguard.cli.output import echo, print_json
from oomguard.cli.report_text import DIFF_LINES
from oomguard.run.compare import Comparison, compare
from oomguard.run.past_runs import stored_report


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("after", type=click.Path(path_type=Path), metavar="RUN")
@as_json
def command(before: Path, after: Path, as_json: bool) -> None:
    """Show what differs between two runs: config, environment, data, outcome, peaks and loss.

    RUN is a run folder, its name under oomguard-runs, or a fit-report.json.
    """
    found = compare(*(stored_report(report_place(run)) for run in (before, after)))
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        echo(line)


def _lines(found: Comparison) -> Iterator[str]:
    yield f"from {found.before} to {found.after}"
    if not found.differences and not found.config_diff:
        yield "nothing differs"
    for section, group in groupby(found.differences, key=lambda one: one.section):
        yield f"{section.value}:"
        yield from (f"  {difference_line(one)}" for one in group)
    if found.config_diff:
        yield "final config:"
        lines = found.config_diff.splitlines()
        yield from (f"  {line}" for line in lines[:DIFF_LINES])
        if len(lines) > DIFF_LINES:
            yield f"  ... and {len(lines) - DIFF_LINES} more lines, see --json"
    if found.unknown:
        yield "not compared:"
        yield from (f"  {line}" for line in found.unknown)
