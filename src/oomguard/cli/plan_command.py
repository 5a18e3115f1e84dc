"""`oomguard plan`: say before the first launch what will fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from oomguard.cli.option_types import SIZE
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, train_file, verbose
from oomguard.cli.output import print_json
from oomguard.cli.plan_job import PlannedJob, plan_job
from oomguard.cli.plan_table import print_plan
from oomguard.cli.prepare import Prepared, prepare
from oomguard.errors import UsageError, Where
from oomguard.estimate.cards import card_named
from oomguard.job.training_job import Device
from oomguard.predict.forecast import Capacity, RungOutlook
from oomguard.predict.history import FitIndex


@click.command("plan", cls=WithCommand)
@train_file
@flags(PLAN)
@click.option("--gpu", metavar="NAME", help="GPU model, e.g. 'RTX 3090' or a100-80.")
@click.option("--gpu-memory", type=SIZE.flag_type, help="Memory of one GPU, e.g. 24GiB.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Number of GPUs (default: 1).")
@click.option("--host-memory", type=SIZE.flag_type, help="Host memory, e.g. 64GiB.")
@click.option("--explain-terms", is_flag=True, help="Show how each term is computed.")
@verbose
@as_json
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    train: Path | None,
    gpu: str | None,
    gpu_memory: int | None,
    gpus: int,
    host_memory: int | None,
    explain_terms: bool,
    verbose: bool,
    as_json: bool,
    **given: object,
) -> None:
    """Estimate the memory of a job before launching it, and find the first change that fits.

    Needs no GPU, weights or network. TRAIN is the framework's own config file. Alternatively,
    pass the full command after --.
    """
    prepared = prepare(train, ctx.meta[COMMAND], given, planned_gpus=gpus)
    room, prepared = _on(prepared, gpu, gpu_memory, host_memory)
    fits = prepared.options.fits
    index = FitIndex(Path(fits) if fits else None)
    planned = plan_job(prepared, room, device=_name(gpu), index=index)
    if index.lost is not None:
        click.secho(index.lost, fg="yellow", err=True)
    if as_json:
        print_json(_document(planned, explain=explain_terms))
    else:
        print_plan(planned, explain=explain_terms, verbose=verbose)


def _on(
    prepared: Prepared, gpu: str | None, gpu_memory: int | None, host_memory: int | None
) -> tuple[Capacity, Prepared]:
    """Return the capacity to plan for and the job as it would run there."""
    device_bytes, bfloat16 = _device(gpu, gpu_memory)
    if prepared.job.device is Device.CPU:
        raise UsageError(
            "this job runs on the CPU, so there is no GPU memory to plan",
            next_step="Remove use_cpu from its settings to plan it for a GPU.",
        )
    job = replace(prepared.job, bfloat16=bfloat16)
    return Capacity(device_bytes=device_bytes, host_bytes=host_memory), replace(prepared, job=job)


def _name(gpu: str | None) -> str | None:
    return card_named(gpu).name if gpu else None


def _device(gpu: str | None, gpu_memory: int | None) -> tuple[int, bool]:
    """Return the bytes of one GPU and whether it supports bf16."""
    if (gpu is None) == (gpu_memory is None):
        raise UsageError(
            "pass either --gpu or --gpu-memory",
            where=Where(key="--gpu"),
            next_step="For example: --gpu 'RTX 3090', or --gpu-memory 24GiB.",
        )
    if gpu is None:
        return gpu_memory or 0, True
    card = card_named(gpu)
    return card.usable_bytes, card.bfloat16


def _document(planned: PlannedJob, *, explain: bool) -> dict[str, object]:
    found, asked = planned.forecast, planned.forecast.asked.plan
    document: dict[str, object] = {
        "framework": planned.prepared.job.framework,
        "model": planned.model.name,
        "model_source": planned.model.source,
        "method": asked.tuning,
        "trained": planned.trained(asked),
        "capacity_bytes": planned.room.device_bytes,
        "asked": found.asked,
        "rungs": [_rung(rung) for rung in found.rungs],
        "chosen": found.chosen,
        "notes": planned.notes,
        "seconds": planned.seconds,
    }
    if not explain:
        return document
    rung = found.asked if found.chosen is None else found.rungs[found.chosen]
    return {**document, "arithmetic": planned.explain(rung)}


def _rung(rung: RungOutlook) -> dict[str, object]:
    return {
        "strategy": rung.strategy,
        "fidelity": rung.step.fidelity if rung.step else None,
        "plan": rung.plan,
        "estimate": rung.estimate,
        "fits": rung.fits,
        "skipped": rung.skipped,
    }
