"""`oomguard launch`: bring a job from out of memory to trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from oomguard import __version__
from oomguard.cli.console import Console
from oomguard.cli.options import COMMAND, GRACE_S, Size, WithCommand, grace, shared
from oomguard.cli.options_block import Options
from oomguard.cli.prepare import RUNS, Prepared, prepare
from oomguard.cli.starting_point import StartingPoint, choose_start
from oomguard.cli.summary import environment_info, now_at, print_summary
from oomguard.errors import UsageError, Where
from oomguard.ladder.strategy import Fidelity
from oomguard.predict.history import FitIndex, record_run
from oomguard.process.limits import CapBy
from oomguard.process.local import LocalEngine
from oomguard.run.events import Limits, RunStarted
from oomguard.run.folder import RunFolder
from oomguard.run.outcome import write_outcome
from oomguard.run.supervisor import Audience, Supervisor


@click.command("launch", cls=WithCommand)
@shared
@click.option("--max-attempts", type=click.IntRange(min=1), help="Launches at most (40).")
@click.option("--host-memory", type=Size(), help="Cap on host memory, such as 16GiB.")
@click.option(
    "--host-memory-by",
    type=click.Choice([by.value for by in CapBy]),
    help="rlimit: each process by itself (default); cgroup: all together.",
)
@click.option("--gpu-memory", type=Size(), help="Cap on the memory of each GPU, such as 24GiB.")
@click.option(
    "--hang-timeout",
    "hang_timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop a job that has taken steps and then says nothing for so long.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Save a checkpoint so often, where the job saves none itself.",
)
@click.option(
    "--relax/--no-relax",
    default=None,
    help="Take back changes that a fit did not need, each shown by a short run (on).",
)
@click.option(
    "--grow",
    is_flag=True,
    default=None,
    help="Begin with short sequences and a micro batch of 1, and grow to the largest that fits.",
)
@click.option(
    "--probe",
    is_flag=True,
    default=None,
    help="Try each plan on its longest batches first, for two steps that leave the run untouched.",
)
@grace
@click.option("--runs", metavar="DIR", help=f"Where run folders go ({RUNS}).")
@click.option("--name", metavar="NAME", help="The name of the run folder.")
@click.option("--no-predict", is_flag=True, help="Begin with what was asked, whatever it takes.")
@click.option("--fits", metavar="PATH", help="The index of fits (in the user's data folder).")
@click.option("--no-inside", is_flag=True, help="Without the reporter inside the job.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
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
    no_inside: bool,
    as_json: bool,
    **given: str | float | None,
) -> int:
    """Launch a training job, and again with less memory until it fits.

    TRAIN.YAML is the framework's own config; or give the whole command after --.
    """
    options = Options(
        allow=Fidelity(allow) if allow else None,
        host_memory_bytes=host_memory,
        gpu_memory_bytes=gpu_memory,
        runs_dir=runs,
        **given,  # type: ignore[arg-type]  # click has read each option as its field's type
    )
    job = prepare(train, ctx.meta[COMMAND], options)
    _check(job.limits, inside=not no_inside)
    limits = replace(
        job.limits, inside=not no_inside, grace_s=GRACE_S if grace_s is None else grace_s
    )
    account = Console(quiet_stdout=as_json)
    prepared = replace(job, limits=limits, job=replace(job.job, inside=limits.inside))
    index = FitIndex(Path(fits) if fits else None)
    foresight = None if no_predict else choose_start(prepared, account, index=index)
    return _launch(prepared, account, foresight, as_json=as_json)


def _check(limits: Limits, *, inside: bool) -> None:
    """Refuse what cannot be done together."""
    if limits.grow and limits.probe:
        raise UsageError(
            "--grow tries plans from the smallest up, --probe from the asked one down",
            where=Where(key="--probe"),
            next_step="Give one of the two.",
        )
    if inside or not (limits.grow or limits.probe):
        return
    flag = "--grow" if limits.grow else "--probe"
    raise UsageError(
        f"{flag} has to see optimizer steps, which the reporter inside the job counts",
        where=Where(key=flag),
        next_step="Leave out --no-inside.",
    )


def _launch(
    prepared: Prepared, account: Console, foresight: StartingPoint | None, *, as_json: bool
) -> int:
    folder = RunFolder.create(prepared.runs, prepared.name)
    try:
        engine = LocalEngine(caps=prepared.caps, inside=prepared.limits.inside)
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
            "this job saves no checkpoint to go on from: running out of memory late costs every "
            "step done by then (--checkpoint-every STEPS, where the framework can)"
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
