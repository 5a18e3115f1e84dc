"""`oomguard launch`: run a training job, and relaunch it with less memory until it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from oomguard import __version__
from oomguard.cli.console import Console
from oomguard.cli.options import COMMAND, GRACE_S, Size, WithCommand, grace, shared
from oomguard.cli.options_block import Options
from oomguard.cli.prepare import MAX_ATTEMPTS, RUNS, Prepared, prepare
from oomguard.cli.starting_point import StartingPoint, choose_start
from oomguard.cli.summary import environment_info, now_at, print_summary
from oomguard.errors import UsageError, Where
from oomguard.ladder.strategy import Fidelity
from oomguard.predict.history import FitIndex, record_run
from oomguard.process.limits import CapBy
from oomguard.process.start import LocalEngine
from oomguard.run.events import Limits, RunStarted
from oomguard.run.folder import RunFolder
from oomguard.run.outcome import write_outcome
from oomguard.run.supervisor import Audience, Supervisor


@click.command("launch", cls=WithCommand)
@shared
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    help=f"Maximum number of attempts (default: {MAX_ATTEMPTS}).",
)
@click.option("--host-memory", type=Size(), help="Host memory limit, e.g. 16GiB.")
@click.option(
    "--host-memory-by",
    type=click.Choice([by.value for by in CapBy]),
    help="How to enforce it: rlimit, per process (default), or cgroup, for all processes.",
)
@click.option("--gpu-memory", type=Size(), help="Memory limit per GPU, e.g. 24GiB.")
@click.option(
    "--hang-timeout",
    "hang_timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Kill the job if it makes no progress for this long, once it has taken a step.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Checkpoint every N optimizer steps if the job itself saves none.",
)
@click.option(
    "--relax/--no-relax",
    default=None,
    help="After a fit, revert changes that turn out unnecessary, each verified by a short trial "
    "(default: relax).",
)
@click.option(
    "--grow",
    is_flag=True,
    default=None,
    help="Start with short sequences and a micro batch of 1, and grow to the largest that fits.",
)
@click.option(
    "--probe",
    is_flag=True,
    default=None,
    help="Before the run, try each plan for two steps on its longest batches, in a scratch folder.",
)
@grace
@click.option("--runs", metavar="DIR", help=f"Parent of run folders (default: {RUNS}).")
@click.option("--name", metavar="NAME", help="Name of the run folder.")
@click.option(
    "--no-predict", is_flag=True, help="Skip memory prediction; start from the requested config."
)
@click.option("--fits", metavar="PATH", help="History database (default: in the user data folder).")
@click.option("--no-monitor", is_flag=True, help="Do not inject the in-process monitor.")
@click.option("--no-inside", is_flag=True, hidden=True)  # the old name of --no-monitor
@click.option("--verbose", is_flag=True, help="List skipped strategies with their reasons.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
@click.pass_context
def command(  # the options document themselves
    ctx: click.Context,
    /,
    *,
    train: Path | None,
    allow: str | None,
    host_memory: int | None,
    gpu_memory: int | None,
    runs: str | None,
    no_predict: bool,
    fits: str | None,
    grace_s: float | None,
    no_monitor: bool,
    no_inside: bool,
    verbose: bool,
    as_json: bool,
    **given: str | float | None,
) -> int:
    """Launch a training job and relaunch it with a smaller memory footprint until it fits.

    TRAIN is the framework's own config file. Alternatively, pass the full command after --.
    """
    if no_inside:
        click.echo("note: --no-inside is now --no-monitor", err=True)
    monitored = not (no_monitor or no_inside)
    options = Options(
        allow=Fidelity(allow) if allow else None,
        host_memory_bytes=host_memory,
        gpu_memory_bytes=gpu_memory,
        runs_dir=runs,
        **given,  # type: ignore[arg-type]  # click has read each option as its field's type
    )
    job = prepare(train, ctx.meta[COMMAND], options)
    _check(job.limits, inside=monitored)
    limits = replace(job.limits, inside=monitored, grace_s=GRACE_S if grace_s is None else grace_s)
    account = Console(quiet_stdout=as_json, verbose=verbose)
    prepared = replace(job, limits=limits, job=replace(job.job, inside=limits.inside))
    index = FitIndex(Path(fits) if fits else None)
    foresight = None if no_predict else choose_start(prepared, account, index=index)
    return _launch(prepared, account, foresight, as_json=as_json)


def _check(limits: Limits, *, inside: bool) -> None:
    """Refuse options that exclude each other."""
    if limits.grow and limits.probe:
        raise UsageError(
            "--grow tries plans from the smallest up, --probe from the requested one down",
            where=Where(key="--probe"),
            next_step="Use one of the two.",
        )
    if inside or not (limits.grow or limits.probe):
        return
    flag = "--grow" if limits.grow else "--probe"
    raise UsageError(
        f"{flag} needs optimizer steps counted, which only the in-process monitor does",
        where=Where(key=flag),
        next_step="Remove --no-monitor.",
    )


def _launch(
    prepared: Prepared, account: Console, foresight: StartingPoint | None, *, as_json: bool
) -> int:
    folder = RunFolder.create(prepared.runs, prepared.name)
    try:
        engine = LocalEngine(caps=prepared.caps, monitored=prepared.limits.inside)
        supervisor = Supervisor(
            adapter=prepared.adapter,
            ladder=prepared.ladder,
            engine=engine,
            folder=folder,
            audience=Audience(event=account.event, output=account.output),
        )
        _offer_checkpoints(account, prepared)
        record = supervisor.run(_first_event(prepared, foresight))
        outcome = write_outcome(record, prepared.adapter, folder, environment_info(prepared.job))
    finally:
        folder.close()
    lost = record_run(record)
    if lost is not None and (foresight is None or foresight.lost is None):
        account.say(lost, "yellow")
    return print_summary(account, record, outcome, folder, as_json=as_json)


def _offer_checkpoints(account: Console, prepared: Prepared) -> None:
    if prepared.adapter.checkpoint_layout(prepared.job) is None:
        account.say(
            "warning: this job saves no checkpoints, so a late OOM loses all progress; use "
            "--checkpoint-every STEPS if the framework supports it"
        )


def _first_event(prepared: Prepared, foresight: StartingPoint | None) -> RunStarted:
    return RunStarted(
        t=0.0,
        run=prepared.name,
        version=__version__,
        at=now_at(),
        job=prepared.job,
        limits=prepared.limits,
        start=foresight.start if foresight else None,
        predicted=foresight.predicted if foresight else (),
        lessons=foresight.lessons if foresight else None,
    )
