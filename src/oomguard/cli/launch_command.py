"""`oomguard launch`: run a training job, and relaunch it with lower memory use until it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import msgspec

from oomguard import __version__
from oomguard.cli.collect_provenance import data_of, environment_of
from oomguard.cli.console import Console
from oomguard.cli.options import (
    COMMAND,
    LAUNCH,
    WithCommand,
    as_json,
    flags,
    train_file,
    verbose,
)
from oomguard.cli.prepare import Prepared, prepare
from oomguard.cli.starting_point import StartingPoint, choose_start
from oomguard.cli.summary import now_at, print_summary
from oomguard.errors import UsageError, Where
from oomguard.predict.history import FitIndex, record_run
from oomguard.process.start import LocalEngine
from oomguard.run.events import Limits, RunStarted
from oomguard.run.folder import RunFolder
from oomguard.run.outcome import write_outcome
from oomguard.run.report import FitReport
from oomguard.run.state import RunRecord
from oomguard.run.supervisor import Audience, Supervisor


@click.command("launch", cls=WithCommand)
@train_file
@flags(LAUNCH)
@verbose
@as_json
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    train: Path | None,
    verbose: bool,
    as_json: bool,
    **given: object,
) -> int:
    """Launch a training job; after an OOM, lower its memory use and relaunch it until it fits.

    TRAIN.YAML is the config file of your framework. Alternatively, pass the full command after --.
    """
    prepared = prepare(train, ctx.meta[COMMAND], given)
    console = Console(quiet_stdout=as_json, verbose=verbose)
    record, outcome, folder = launched(prepared, console)
    return print_summary(console, record, outcome, folder, as_json=as_json)


def launched(
    prepared: Prepared, console: Console
) -> tuple[RunRecord, tuple[FitReport, Path | None], RunFolder]:
    """Check what was asked for, predict where to start, and run the job until it ends.

    Raises:
        UsageError: for options that exclude each other or have no effect; nothing was started.
    """
    options = prepared.options
    _check(prepared.limits)
    _check_names(prepared)
    _check_saving(prepared)
    index = FitIndex(Path(options.fits) if options.fits else None)
    start = choose_start(prepared, console, index=index) if options.predict else None
    return supervise(prepared, console, start)


def _check(limits: Limits) -> None:
    """Reject options that exclude each other."""
    if limits.grow and limits.probe:
        raise UsageError(
            "--grow tries plans from the smallest up, --probe from the requested one down",
            where=Where(key="--probe"),
            next_step="Use one of the two.",
        )
    if limits.inside or not (limits.grow or limits.probe):
        return
    flag = "--grow" if limits.grow else "--probe"
    raise UsageError(
        f"{flag} needs optimizer steps counted, which only the in-process monitor does",
        where=Where(key=flag),
        next_step="Remove --no-monitor.",
    )


def _check_names(prepared: Prepared) -> None:
    """Reject names that are not UTF-8: no record of the run could hold them."""
    try:
        msgspec.json.encode((prepared.job, str(prepared.runs.absolute()), prepared.name))
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{error.object!a} is not UTF-8, and the records of a run are",
            next_step="Rename that file or folder, or use a link to it with another name.",
        ) from error


def _resumes(prepared: Prepared, checkpoint_every: int | None) -> bool:
    """Return whether the job saves checkpoints that it can resume from."""
    job = replace(prepared.job, checkpoint_every=checkpoint_every)
    return prepared.adapter.checkpoint_layout(job) is not None


def _cannot_resume(prepared: Prepared) -> str:
    job = prepared.job
    _, why = prepared.adapter.resume_mode(job, job.asked, job.asked)
    return why or "the folder that the job saves into is not known"


def _check_saving(prepared: Prepared) -> None:
    """Reject checkpoints that nothing could resume from."""
    every = prepared.job.checkpoint_every
    if every is not None and not _resumes(prepared, every):
        raise UsageError(
            f"it would have no effect: {_cannot_resume(prepared)}",
            where=Where(key="--checkpoint-every"),
            next_step="Remove --checkpoint-every.",
        )


def _no_checkpoints(prepared: Prepared) -> str:
    """Return the warning about a job that cannot resume, with what helps if anything does."""
    lost = "warning: this job saves no checkpoints, so a late OOM loses all progress"
    if _resumes(prepared, checkpoint_every=1):
        return f"{lost}; use --checkpoint-every STEPS"
    return f"{lost}: {_cannot_resume(prepared)}"


def supervise(
    prepared: Prepared, console: Console, start: StartingPoint | None = None
) -> tuple[RunRecord, tuple[FitReport, Path | None], RunFolder]:
    """Run a job until it ends; return its record, its report with the final config, its folder."""
    start = start or StartingPoint()
    folder = RunFolder.create(prepared.runs, prepared.name)
    try:
        supervisor = Supervisor(
            adapter=prepared.adapter,
            ladder=prepared.ladder,
            engine=LocalEngine(
                caps=prepared.caps,
                monitored=prepared.limits.inside,
                in_place=prepared.limits.splits,
            ),
            folder=folder,
            audience=Audience(event=console.event, output=console.output, notice=console.notice),
        )
        if not _resumes(prepared, prepared.job.checkpoint_every):
            console.say(_no_checkpoints(prepared))
        for warning in prepared.adapter.warnings(prepared.job):
            console.say(f"warning: {warning}", "yellow")
        started = RunStarted(
            t=0.0,
            run=prepared.name,
            version=__version__,
            at=now_at(),
            job=prepared.job,
            limits=prepared.limits,
            start=start.start,
            predicted=start.predicted,
            lessons=start.history,
            folder=str(folder.path),
            environment=environment_of(prepared.job),
            data=data_of(prepared.job, prepared.adapter),
        )
        record = supervisor.run(started)
        outcome = write_outcome(record, prepared.adapter, folder)
    finally:
        console.close()
        folder.close()
    history_error = record_run(record)
    if history_error is not None and start.history_error is None:
        console.say(history_error, "yellow")
    return record, outcome, folder
