"""`oomguard plan`: estimate memory before launching, and find the first change that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from oomguard.cli.option_types import COUNT, SIZE
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, train_file, verbose
from oomguard.cli.output import print_json, secho
from oomguard.cli.plan_job import PlannedJob, plan_job
from oomguard.cli.plan_table import print_plan
from oomguard.cli.prepare import prepare
from oomguard.errors import UsageError
from oomguard.estimate.cards import Card, card_named
from oomguard.job.training_job import Device, Job
from oomguard.predict.forecast import Capacity
from oomguard.predict.history import FitIndex


@click.command("plan", cls=WithCommand)
@train_file
@flags(PLAN)
@click.option("--gpu", metavar="NAME", help="GPU model, e.g. 'RTX 3090' or a100-80.")
@click.option("--gpu-memory", type=SIZE.flag_type, help="Memory of one GPU, e.g. 24GiB.")
@click.option(
    "--gpus",
    type=COUNT.flag_type,
    default=1,
    metavar="N",
    help="Number of GPUs (default: 1).",
)
@click.option("--host-memory", type=SIZE.flag_type, help="Host memory of the machine, e.g. 64GiB.")
@click.option(
    "--explain-terms", is_flag=True, help="Show how each term of the estimate is computed."
)
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

    Needs no GPU, weights or network. TRAIN.YAML is the config file of your framework.
    Alternatively, pass the full command after --.
    """
    prepared = prepare(train, ctx.meta[COMMAND], given, planned_gpus=gpus)
    card, device_bytes = _device(gpu, gpu_memory)
    stated = ctx.get_parameter_source("gpus") is ParameterSource.COMMANDLINE
    if stated and prepared.job.world.size != gpus:
        started = f"the job starts on {prepared.job.world.size} by its own settings"
        secho(f"note: --gpus {gpus} has no effect: {started}", fg="yellow", err=True)
    index = FitIndex(Path(prepared.options.fits) if prepared.options.fits else None)
    planned = plan_job(
        replace(prepared, job=_on_card(prepared.job, card)),
        Capacity(device_bytes=device_bytes, host_bytes=host_memory),
        device=card.name if card else None,
        index=index,
    )
    if index.lost is not None:
        secho(index.lost, fg="yellow", err=True)
    if as_json:
        print_json(_document(planned, explain=explain_terms))
    else:
        print_plan(planned, gpu=card.name if card else None, explain=explain_terms, verbose=verbose)


def _on_card(job: Job, card: Card | None) -> Job:
    """Return the job with what the GPU can compute in; one whose name is not known is a new one."""
    if job.device is Device.CPU:
        raise UsageError(
            "this job runs on the CPU, so there is no GPU memory to plan",
            next_step="Remove use_cpu from its settings to plan it for a GPU.",
        )
    return replace(
        job,
        bfloat16=card is None or card.bfloat16,
        hopper=card is not None and card.hopper,
    )


def _device(gpu: str | None, gpu_memory: int | None) -> tuple[Card | None, int]:
    """Return the GPU to plan for, None if only its size is known, and its bytes."""
    if gpu is None and gpu_memory is None:
        raise UsageError(
            "plan needs a GPU: pass --gpu or --gpu-memory",
            next_step="For example: --gpu 'RTX 3090', or --gpu-memory 24GiB.",
        )
    if gpu is not None and gpu_memory is not None:
        raise UsageError(
            "pass --gpu or --gpu-memory, not both",
            next_step="--gpu-memory is for a GPU whose name oomguard does not know.",
        )
    card = card_named(gpu) if gpu is not None else None
    return card, card.usable_bytes if card else gpu_memory or 0


def _document(planned: PlannedJob, *, explain: bool) -> dict[str, object]:
    found, asked = planned.forecast, planned.forecast.asked.plan
    document: dict[str, object] = {
        "framework": planned.prepared.job.framework,
        "model": planned.model.name,
        "model_source": planned.model.source,
        "method": planned.method,
        "unmodelled": planned.unmodelled,
        "rejected": planned.rejected,
        "trained": planned.trained(asked),
        "capacity_bytes": planned.capacity.device_bytes,
        "asked": found.asked,
        "rungs": [
            {
                "strategy": rung.strategy,
                "fidelity": rung.step.fidelity if rung.step else None,
                "plan": rung.plan,
                "estimate": rung.estimate,
                "fits": rung.fits,
                "skipped": rung.skipped,
            }
            for rung in found.rungs
        ],
        "chosen": found.chosen,
        "cheapest": found.cheapest,
        "notes": planned.notes,
        "seconds": planned.seconds,
    }
    if not explain:
        return document
    return {**document, "arithmetic": planned.explain(found.first_fit or found.asked)}
