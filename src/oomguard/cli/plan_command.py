"""`oomguard plan`: estimate memory before launching, and find the first change that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from click.core import ParameterSource

from oomguard.cli.cards_text import cards_document, print_cards
from oomguard.cli.option_types import COUNT, SIZE
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, train_file, verbose
from oomguard.cli.output import echo, print_json, secho
from oomguard.cli.plan_cards import COUNTS, card_table
from oomguard.cli.plan_ci import ci_exit, ci_line, github_lines
from oomguard.cli.plan_job import PlannedJob, on_card, plan_job
from oomguard.cli.plan_largest import largest_document, largest_fit, print_largest
from oomguard.cli.plan_table import print_plan
from oomguard.cli.plan_target import ALL, JobSource, Target, named_target, target_here
from oomguard.cli.prepare import Prepared
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
    "--ci",
    is_flag=True,
    help="Print one line, and exit with 0 only if the requested config is certain to fit: 5 if it "
    "does not fit, 6 if that is not certain. On GitHub Actions it also annotates the config.",
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
    ci: bool,
    **given: object,
) -> int | None:
    """Estimate the memory of a job before launching it, and find the first change that fits.

    Needs no GPU, weights or network. TRAIN.YAML is the config file of your framework.
    Alternatively, pass the full command after --. With --gpu all, or without a GPU, it lists the
    GPUs on which the job fits, as requested or after changes with the same math.
    """
    source = JobSource(train=train, command=ctx.meta[COMMAND], given=given)
    stated = ctx.get_parameter_source("gpus") is ParameterSource.COMMANDLINE
    call = _call(source, gpu, gpu_memory, gpus=gpus if stated else None, host_bytes=host_memory)
    call = replace(call, verbose=verbose, as_json=as_json)
    one_gpu = {"--explain-terms": explain_terms, "--max": largest is not None, "--ci": ci}
    asked = [name for name, is_asked in one_gpu.items() if is_asked]
    if len(asked) > 1:
        raise UsageError(f"pass {' or '.join(asked)}: each prints an answer of its own")
    if call.target is None:
        _cards(call, asked)
        return None
    _explain_target(call.target, call.prepared.job.world.size, call.gpus)
    if largest is not None:
        _largest(call, call.target, largest)
        return None
    return _plan(call, call.target, explain=explain_terms, ci=ci)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCall:
    """One `oomguard plan`: the job, where it is planned for (None: every GPU), and the output.

    `gpus` is how many were stated, None if none were.
    """

    source: JobSource
    prepared: Prepared
    target: Target | None
    gpus: int | None
    host_bytes: int | None
    index: FitIndex
    verbose: bool = False
    as_json: bool = False

    def show(self, document: Callable[[], object], text: Callable[[], None]) -> None:
        """Print an answer, and what happened to the history database."""
        if self.index.lost is not None:
            secho(self.index.lost, fg="yellow", err=True)
        if self.as_json:
            print_json(document())
        else:
            text()


def _call(
    source: JobSource,
    gpu: str | None,
    gpu_memory: int | None,
    *,
    gpus: int | None,
    host_bytes: int | None,
) -> PlanCall:
    """Read the job for the GPUs that are named, else for those here."""
    named = named_target(gpu, gpu_memory) if gpu != ALL else None
    here = gpus_here() if gpu is None and gpu_memory is None else ()
    prepared = source.on(gpus or max(1, len(here)))
    return PlanCall(
        source=source,
        prepared=prepared,
        target=named or (target_here(prepared, here) if gpu != ALL else None),
        gpus=gpus,
        host_bytes=host_bytes,
        index=FitIndex(Path(prepared.options.fits) if prepared.options.fits else None),
    )


def _cards(call: PlanCall, about_one: Sequence[str]) -> None:
    """Answer for every GPU that is known."""
    if about_one:
        raise UsageError(
            f"{about_one[0]} is about one GPU",
            next_step="Add --gpu NAME or --gpu-memory SIZE.",
        )
    table = card_table(
        call.source,
        call.prepared.job,
        (call.gpus,) if call.gpus else COUNTS,
        host_bytes=call.host_bytes,
        index=call.index,
    )
    call.show(lambda: cards_document(table), lambda: print_cards(table, verbose=call.verbose))


def _largest(call: PlanCall, target: Target, field: str) -> None:
    """Answer `--max`."""
    job = replayed_job(call.prepared, target, host_bytes=call.host_bytes, index=call.index)
    found = largest_fit(job, field)
    call.show(lambda: largest_document(found), lambda: print_largest(found, gpu=target.name))


def _plan(call: PlanCall, target: Target, *, explain: bool, ci: bool) -> int | None:
    """Show the forecast of the whole ladder, or with `--ci` one line of it."""
    planned = plan_job(
        on_card(call.prepared, bfloat16=target.bfloat16, hopper=target.hopper),
        Capacity(device_bytes=target.device_bytes, host_bytes=call.host_bytes),
        device=target.name,
        index=call.index,
    )

    def text() -> None:
        if ci:
            echo(ci_line(planned))
        else:
            print_plan(planned, gpu=target.name, explain=explain, verbose=call.verbose)

    call.show(lambda: _document(planned, explain=explain), text)
    if not ci:
        return None
    for line in github_lines(planned, os.environ):
        echo(line, err=call.as_json)
    return ci_exit(planned)


def _explain_target(target: Target, world: int, gpus: int | None) -> None:
    """Print which GPUs are planned for, where the command line does not say it."""
    if gpus is not None and world != gpus:
        _note(f"--gpus {gpus} has no effect: the job starts on {world} by its own settings")
    if target.note:
        _note(target.note)


def _note(text: str) -> None:
    secho(f"note: {text}", fg="yellow", err=True)


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
