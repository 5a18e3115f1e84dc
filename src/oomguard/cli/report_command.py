"""`oomguard report`: show what a run tried and changed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from oomguard.cli.options import report_place, run_argument, run_folder
from oomguard.cli.output import complain, json_text, print_page
from oomguard.cli.report_text import markdown
from oomguard.errors import UsageError, Where
from oomguard.machine.atomic_write import write_text
from oomguard.redact import redact, redact_document
from oomguard.run.past_runs import stored_report
from oomguard.run.report import FitReport, from_document, to_json

NO_PLOTS = "memory and loss over time are not plotted; to plot them: pip install 'oomguard[report]'"


@click.command("report")
@run_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "html", "json"]),
    default="md",
    help="md: Markdown, short enough for an issue (default); html: one page with plots, which "
    "loads nothing; json: the whole fit-report.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it to this file instead of stdout.",
)
def command(run: Path, form: str, out: Path | None) -> None:
    """Show what a run tried and changed, for an issue, a pull request or a paper.

    RUN is the run folder, or its name under oomguard-runs.
    """
    folder = run_folder(run)
    report = stored_report(report_place(run))
    if form == "json":
        text = json_text(to_json(report)) + "\n"
    elif form == "html":
        text = _page(folder, report)
    else:
        text = "".join(f"{redact(line)}\n" for line in markdown(report))
    if out is None:
        print_page(text)
        return
    try:
        write_text(out, text)
    except OSError as error:
        raise UsageError(
            f"cannot write the report: {error.strerror or error}",
            where=Where(file=str(out)),
            next_step="Pass --out a file in a folder that exists and that you may write to.",
        ) from error
    complain(f"wrote {out}")


def _page(folder: Path, report: FitReport) -> str:
    """Return the page; what only it needs is imported here, as a plain report is to be quick."""
    from oomguard.cli.report_page import page, without_plots  # noqa: PLC0415

    masked = from_document(redact_document(to_json(report)))
    if find_spec("matplotlib") is None:
        complain(f"note: {NO_PLOTS}")
        return page(masked, without_plots(NO_PLOTS))
    from oomguard.cli.report_plots import plots  # noqa: PLC0415
    from oomguard.run.stored_series import stored_series  # noqa: PLC0415

    return page(masked, plots(masked, list(stored_series(folder, masked))))
