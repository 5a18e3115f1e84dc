"""`oomguard launch`: bring a job from out of memory to trained."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path

import click

from oomguard import __version__
from oomguard.cli.account import Account
from oomguard.cli.options import COMMAND, Size, WithCommand, shared
from oomguard.cli.output import print_json
from oomguard.cli.request import RUNS, Prepared, prepare
from oomguard.config import Options
from oomguard.devices import gpus, host_memory
from oomguard.engines.local import LocalEngine
from oomguard.errors import ExitCode, UsageError, Where
from oomguard.process.limits import CapBy
from oomguard.record import RunRecord, RunStarted, Status
from oomguard.report import FitReport
from oomguard.store import RunFolder
from oomguard.strategy import Fidelity
from oomguard.supervise.loop import Audience, Supervisor
from oomguard.supervise.outcome import write_outcome
from oomguard.units import show_bytes

CODES = {
    Status.FIT: ExitCode.TRAINED,
    Status.FAILED: ExitCode.JOB_FAILED,
    Status.EXHAUSTED: ExitCode.EXHAUSTED,
    Status.INTERRUPTED: ExitCode.INTERRUPTED,
}


@click.command("launch", cls=WithCommand)
@shared
@click.option("--max-attempts", type=click.IntRange(min=1), help="Launches at most (20).")
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
@click.option("--runs", metavar="DIR", help=f"Where run folders go ({RUNS}).")
@click.option("--name", metavar="NAME", help="The name of the run folder.")
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
    if no_inside and job.limits.grow:
        raise UsageError(
            "--grow has to see optimizer steps, which the reporter inside the job counts",
            where=Where(key="--grow"),
            next_step="Leave out --no-inside.",
        )
    return _launch(job, inside=not no_inside, as_json=as_json)


def _launch(prepared: Prepared, *, inside: bool, as_json: bool) -> int:
    account = Account(quiet_stdout=as_json)
    folder = RunFolder.create(prepared.runs, prepared.name)
    try:
        engine = LocalEngine(caps=prepared.caps, inside=inside)
        supervisor = Supervisor(
            adapter=prepared.adapter,
            ladder=prepared.ladder,
            engine=engine,
            folder=folder,
            audience=Audience(event=account.event, output=account.output),
        )
        _offer_checkpoints(account, prepared)
        record = supervisor.run(_first_event(prepared))
        report, config = write_outcome(record, prepared.adapter, folder, _surroundings(prepared))
    finally:
        folder.close()
    _tell(account, record, report, config, folder)
    if as_json:
        print_json(_document(report, config, folder))
    return CODES[record.status or Status.FAILED]


def _offer_checkpoints(account: Account, prepared: Prepared) -> None:
    if prepared.adapter.layout(prepared.job) is None:
        account.say(
            "this job saves no checkpoint to go on from: running out of memory late costs every "
            "step done by then (--checkpoint-every STEPS, where the framework can)"
        )


def _first_event(prepared: Prepared) -> RunStarted:
    return RunStarted(
        t=0.0,
        run=prepared.name,
        version=__version__,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        job=prepared.job,
        limits=prepared.limits,
    )


def _surroundings(prepared: Prepared) -> dict[str, str]:
    cards = [f"{gpu.name} ({show_bytes(gpu.total_bytes)})" for gpu in gpus()]
    return {
        "system": platform.platform(),
        "host_memory": show_bytes(host_memory().total_bytes),
        "gpus": ", ".join(cards) or "none",
        "python": prepared.job.python,
    }


def _document(report: FitReport, config: Path | None, folder: RunFolder) -> dict[str, object]:
    return {
        "status": report.status,
        "run": str(folder.path),
        "attempts": report.attempts,
        "final_config": str(config) if config else None,
        "fit_report": str(folder.report),
    }


def _tell(
    account: Account, record: RunRecord, report: FitReport, config: Path | None, folder: RunFolder
) -> None:
    account.outcome(report)
    if record.status is Status.FIT:
        account.say(f"final config  {config or folder.path / 'final' / 'command.txt'}")
        account.say(f"by hand       {folder.path / 'final' / 'command.txt'}")
    account.say(f"fit-report    {folder.report}")
    if folder.lost is not None:
        account.say(f"the record is not complete: {folder.lost}", "red")
