"""`oomguard plan`: estimate memory before launching, and find the first change that fits."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from oomguard.cli.cards_text import cards_document, print_cards
from oomguard.cli.option_types import COUNT, SIZE
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, train_file, verbose
from oomguard.cli.output import print_json, secho
from oomguard.cli.plan_cards import COUNTS, card_table
from oomguard.cli.plan_job import PlannedJob, on_card, plan_job
from oomguard.cli.plan_largest import largest_document, largest_fit, print_largest
from oomguard.cli.plan_table import print_plan
from oomguard.cli.plan_target import ALL, JobSource, Target, named_target, target_here
from oomguard.cli.replayed_job import SIZES, replayed_job
from oomguard.errors import UsageError
from oomguard.machine.gpus import gpus as gpus_here
from oomguard.predict.forecast import Capacity
from oomguard.predict.history import FitIndex


@click.command("plan", cls=WithCommand)
@train_file
@flags(PLAN)
@click.option(
    "--gpu",
    metavar="NAME",
    help="GPU model, e.g. 'RTX 3090' or a100-80; all: every model that is known, the smallest that "
    "fits first (default: the GPUs here, else all).",
)
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
    "--max",
    "largest",
    type=click.Choice(SIZES),
    help="Find the largest value of this setting that fits, with everything else as requested.",
)
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
    largest: str | None,
    explain_terms: bool,
    verbose: bool,
    as_json: bool,
    **given: object,
) -> None:
    """Estimate the memory of a job before launching it, and find the first change that fits.

    Needs no GPU, weights or network. TRAIN.YAML is the config file of your framework.
    Alternatively, pass the full command after --. With --gpu all, or without a GPU, it lists the
    GPUs on which the job fits, as requested or after changes with the same math.
    """
    source = JobSource(train=train, command=ctx.meta[COMMAND], given=given)
    named = named_target(gpu, gpu_memory) if gpu != ALL else None
    here = gpus_here() if gpu is None and gpu_memory is None else ()
    stated = ctx.get_parameter_source("gpus") is ParameterSource.COMMANDLINE
    prepared = source.on(gpus if stated else max(1, len(here)))
    target = named or (target_here(prepared, here) if gpu != ALL else None)
    one_gpu = {"--explain-terms": explain_terms, "--max": largest is not None}
    if target is None and any(one_gpu.values()):
        raise UsageError(
            f"{next(name for name, given in one_gpu.items() if given)} is about one GPU",
            next_step="Add --gpu NAME or --gpu-memory SIZE.",
        )
    index = FitIndex(Path(prepared.options.fits) if prepared.options.fits else None)
    if target is None:
        counts = (gpus,) if stated else COUNTS
        table = card_table(source, prepared.job, counts, host_bytes=host_memory, index=index)
        _complain_of(index)
        if as_json:
            print_json(cards_document(table))
        else:
            print_cards(table, verbose=verbose)
        return
    _explain_target(target, prepared.job.world.size, gpus if stated else None)
    if largest is not None:
        job = replayed_job(prepared, target, host_bytes=host_memory, index=index)
        found = largest_fit(job, largest)
        _complain_of(index)
        if as_json:
            print_json(largest_document(found))
        else:
            print_largest(found, gpu=target.name)
        return
    planned = plan_job(
        on_card(prepared, bfloat16=target.bfloat16, hopper=target.hopper),
        Capacity(device_bytes=target.device_bytes, host_bytes=host_memory),
        device=target.name,
        index=index,
    )
    _complain_of(index)
    if as_json:
        print_json(_document(planned, explain=explain_terms))
    else:
        print_plan(planned, gpu=target.name, explain=explain_terms, verbose=verbose)


def _explain_target(target: Target, world: int, gpus: int | None) -> None:
    """Print which GPUs are planned for, where the command line does not say it."""
    if gpus is not None and world != gpus:
        _note(f"--gpus {gpus} has no effect: the job starts on {world} by its own settings")
    if target.note:
        _note(target.note)


def _note(text: str) -> None:
    secho(f"note: {text}", fg="yellow", err=True)


def _complain_of(index: FitIndex) -> None:
    if index.lost is not None:
        secho(index.lost, fg="yellow", err=True)


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
