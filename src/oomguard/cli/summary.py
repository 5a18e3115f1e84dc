"""The result of a run: printed, as a JSON document and as an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from oomguard.cli.console import Console
from oomguard.cli.output import print_json
from oomguard.cli.streams import discard
from oomguard.errors import ExitCode
from oomguard.run.events import Status
from oomguard.run.folder import RunFolder
from oomguard.run.report import FitReport, to_json
from oomguard.run.state import RunRecord

CODES = {
    Status.FIT: ExitCode.TRAINED,
    Status.FAILED: ExitCode.JOB_FAILED,
    Status.EXHAUSTED: ExitCode.EXHAUSTED,
    Status.INTERRUPTED: ExitCode.INTERRUPTED,
}


def now_at() -> str:
    """Return the current time as recorded: ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def print_summary(
    console: Console,
    record: RunRecord,
    outcome: tuple[FitReport, Path | None],
    folder: RunFolder,
    *,
    as_json: bool,
    extra: Mapping[str, object] | None = None,
) -> int:
    """Print where the results are, or how to resume; return the exit code.

    `extra` is what else the document has.
    """
    report, config = outcome
    console.outcome(report)
    for what, reason in folder.missed.items():
        console.say(f"{what} could not be written: {reason}", "red")
    if record.status is Status.FIT and "the final config" not in folder.missed:
        console.say(f"final config   {config or folder.path / 'final' / 'command.txt'}")
        console.say(f"manual command {folder.path / 'final' / 'command.txt'}")
    if "the fit-report" not in folder.missed:
        console.say(f"fit-report     {folder.report}")
    if record.status is Status.INTERRUPTED:
        console.say(f"resume with    oomguard resume {folder.path}")
    if folder.lost is not None:
        console.say(f"the record is incomplete: {folder.lost}", "red")
    code: int = CODES[record.status or Status.FAILED]
    if as_json:
        code = _print_document(
            console, {**_document(report, config, folder), **(extra or {})}, code
        )
    for stream, reason in console.lost.items():
        console.say(f"{stream} could not be written: {reason}; the job's output is in log.txt")
    return code


def _print_document(console: Console, document: dict[str, object], code: int) -> int:
    """Print the document; return 2 for a run that trained if whoever reads it gets part of it."""
    try:
        print_json(document)
    except OSError as error:
        discard(sys.stdout)
        console.lost.setdefault("stdout", error.strerror or str(error))
        cut_off = code == ExitCode.TRAINED and not isinstance(error, BrokenPipeError)
        return ExitCode.USAGE if cut_off else code
    return code


def _document(report: FitReport, config: Path | None, folder: RunFolder) -> dict[str, object]:
    published = to_json(report)
    return {
        "status": report.status,
        "reason": report.reason,
        "run": str(folder.path),
        "attempts": published["attempts"],
        "changes": published["changes"],
        "fidelity": published["fidelity"],
        "shortfall": published["shortfall"],
        "final_config": str(config) if config else None,
        "fit_report": str(folder.report),
    }
