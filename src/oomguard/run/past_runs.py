"""Reads runs that may still be going on: nothing is locked or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from oomguard import present
from oomguard.errors import OomguardError, RunFolderError, Where
from oomguard.run.event_log import parse_history
from oomguard.run.events import Status
from oomguard.run.folder import EVENTS, REPORT, no_run
from oomguard.run.report import FitReport, from_json
from oomguard.run.state import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """What a list of runs shows of one; `status` is None while it has no end.

    `problem` says why nothing else is known of it.
    """

    name: str
    at: str | None = None
    framework: str | None = None
    status: Status | None = None
    attempts: int = 0
    problem: str | None = None


def stored_record(run: Path) -> RunRecord | None:
    """Return what is known of a run that has no fit-report; None if it has one.

    Raises:
        RunFolderError: if there is no run, or its events are damaged.
    """
    if present.exists(run / REPORT) or not present.is_file(run / EVENTS):
        return None
    try:
        return _record(run)
    except OSError as error:
        raise _unreadable("events", run / EVENTS, error) from error


def _record(run: Path) -> RunRecord:
    with (run / EVENTS).open("rb") as lines:
        return parse_history(lines, str(run / EVENTS)).record


def stored_report(run: Path) -> FitReport:
    """Return the fit-report of a run that has ended, or the one in a file.

    Raises:
        RunFolderError: if there is no run, it has not ended, or its report is damaged.
    """
    path = run if present.is_file(run) else run / REPORT
    try:
        return from_json(path.read_bytes())
    except FileNotFoundError as error:
        if not present.is_file(run / EVENTS):
            raise no_run(run) from error
        raise RunFolderError(
            "this run has no fit-report yet: it goes on, or was cut off",
            where=Where(file=str(run)),
            next_step=f"If no oomguard runs it any more: oomguard resume {run}",
        ) from error
    except OSError as error:
        raise _unreadable("fit-report", path, error) from error
    except msgspec.DecodeError as error:
        raise RunFolderError(
            f"the fit-report is damaged, or of a newer oomguard: {error}",
            where=Where(file=str(path)),
            next_step="Check that it is a fit-report.json, and whole."
            if present.is_file(run)
            else f"Write it again from the run's events: oomguard resume {run}",
        ) from error


def _unreadable(what: str, path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot read the {what}: {error.strerror or error}",
        where=Where(file=str(path)),
        next_step="Fix the permissions.",
    )


def past_runs(parent: Path) -> list[PastRun]:
    """Return the runs in a folder, the newest first.

    Raises:
        RunFolderError: if the folder cannot be read.
    """
    try:
        folders = [folder for folder in parent.iterdir() if present.is_file(folder / EVENTS)]
    except OSError as error:
        raise RunFolderError(
            f"cannot read the folder of runs: {error.strerror or error}",
            where=Where(file=str(parent)),
            next_step="Pass the folder that `oomguard launch` was given with --runs.",
        ) from error
    return sorted(map(_past_run, folders), key=lambda one: (one.at or "", one.name), reverse=True)


def _past_run(folder: Path) -> PastRun:
    """Read the report of a run; without one, its events."""
    try:
        report = from_json((folder / REPORT).read_bytes())
    except (OSError, msgspec.DecodeError):
        return _from_events(folder)
    return PastRun(
        name=folder.name,
        at=report.at,
        framework=report.framework,
        status=report.status,
        attempts=len(report.attempts),
    )


def _from_events(folder: Path) -> PastRun:
    try:
        record = _record(folder)
    except (OSError, OomguardError) as error:
        problem = error.what if isinstance(error, OomguardError) else error.strerror
        return PastRun(name=folder.name, problem=problem or str(error))
    return PastRun(
        name=folder.name,
        at=record.at,
        framework=record.job.framework if record.job else None,
        status=record.status,
        attempts=len(record.attempts),
    )
