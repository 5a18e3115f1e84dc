"""`oomguard plan`: estimate memory before launching, and find the first change that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from click.core import ParameterSource

from oomguard.cli.cards_text import cards_document, print_cards
from oomguard.cli.option_types import AUTO, SIZE, GpuCount
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, verbose
from oomguard.cli.output import echo, print_json, print_page, secho
from oomguard.cli.plan_cards import COUNTS, EACH_COUNT, card_table
from oomguard.cli.plan_ci import ci_exit, ci_line, github_lines
from oomguard.cli.plan_compare import (
    Compared,
    compared_csv,
    compared_document,
    print_compared,
)
from oomguard.cli.plan_job import PlannedJob, on_card, plan_job
from oomguard.cli.plan_largest import largest_document, largest_fit, print_largest
from oomguard.cli.plan_sweep import (
    Swept,
    SweptType,
    print_sweep,
    sweep,
    sweep_csv,
    sweep_document,
)
from oomguard.cli.plan_table import print_plan
from oomguard.cli.plan_target import ALL, JobSource, Target, catalogue, named_target, target_here
from oomguard.cli.prepare import Prepared
from oomguard.cli.price_list import read_prices
from oomguard.cli.replayed_job import SIZES, replayed_job
from oomguard.errors import UsageError
from oomguard.machine.gpus import gpus as gpus_here
from oomguard.predict.forecast import Capacity
from oomguard.predict.history import FitIndex
from oomguard.redact import redact

_FEWEST_COMPARED = 2


@click.command("plan", cls=WithCommand)
@click.argument("trains", metavar="TRAIN", nargs=-1, type=click.Path(path_type=Path))
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
    type=GpuCount(),
    default=1,
    metavar="N|auto",
    help="Number of GPUs (default: 1); auto: the fewest with which the job fits.",
)
@click.option("--host-memory", type=SIZE.flag_type, help="Host memory of the machine, e.g. 64GiB.")
@click.option(
    "--prices",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prices of GPUs for an hour, as YAML, JSON or CSV: of the GPUs on which the job fits the "
    "cheapest is named.",
)
@click.option(
    "--max",
    "largest",
    type=click.Choice(SIZES),
    help="Find the largest value of this setting that fits, with everything else as requested.",
)
@click.option(
    "--sweep",
    "swept",
    type=SweptType(),
    metavar="FIELD=VALUES",
    multiple=True,
    help="Predict each of several values, e.g. sequence_length=512,1024,2048; given twice, every "
    "combination.",
)
@click.option("--compare", is_flag=True, help="Compare several config files on the same GPU.")
@click.option("--csv", "as_csv", is_flag=True, help="Print --sweep or --compare as CSV.")
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
    trains: tuple[Path, ...],
    gpu: str | None,
    gpu_memory: int | None,
    gpus: int,
    host_memory: int | None,
    prices: Path | None,
    largest: str | None,
    explain_terms: bool,
    verbose: bool,
    as_json: bool,
    swept: tuple[Swept, ...],
    compare: bool,
    as_csv: bool,
    ci: bool,
    **given: object,
) -> int | None:
    """Estimate the memory of a job before launching it, and find the first change that fits.

    Needs no GPU, weights or network. TRAIN.YAML is the config file of your framework.
    Alternatively, pass the full command after --. With --gpu all, or without a GPU, it lists the
    GPUs on which the job fits, as requested or after changes with the same math.
    """
    command_line: tuple[str, ...] = ctx.meta[COMMAND]
    _check_files(ctx, trains, compare=compare, command_line=command_line)
    source = JobSource(train=trains[0] if trains else None, command=command_line, given=given)
    stated = ctx.get_parameter_source("gpus") is ParameterSource.COMMANDLINE
    call = plan_call(source, gpu, gpu_memory, gpus=gpus if stated else None, host_bytes=host_memory)
    call = replace(call, verbose=verbose, as_json=as_json, as_csv=as_csv)
    one_gpu = {
        "--explain-terms": explain_terms, "--max": largest is not None, "--ci": ci,
        "--sweep": bool(swept), "--compare": compare, "--gpus auto": gpus == AUTO,
    }  # fmt: skip
    question = _question([name for name, is_asked in one_gpu.items() if is_asked])
    if as_csv and question not in ("--sweep", "--compare"):
        raise UsageError("--csv is for --sweep and --compare", next_step="Or use --json.")
    if call.target is None or gpus == AUTO:
        _cards(call, question, prices)
        return None
    if prices is not None:
        raise UsageError("--prices is for several GPUs", next_step="Add --gpu all.")
    _explain_target(call.target, call.prepared.job.world.size, call.gpus)
    if largest is not None:
        _largest(call, call.target, largest)
    elif swept:
        _sweep(call, call.target, swept)
    elif compare:
        _compare(call, call.target, trains)
    else:
        return _plan(call, call.target, explain=explain_terms, ci=ci)
    return None


def _check_files(
    ctx: click.Context, trains: Sequence[Path], *, compare: bool, command_line: tuple[str, ...]
) -> None:
    """Reject several configs without --compare, and --compare without them."""
    if compare and (len(trains) < _FEWEST_COMPARED or command_line):
        raise UsageError(
            "--compare takes two config files or more",
            next_step="For example: --compare a.yaml b.yaml",
        )
    if not compare and len(trains) > 1:
        raise UsageError(
            "a command has to stand after --, and several config files after --compare",
            next_step=f"{ctx.command_path} [OPTIONS] -- COMMAND...",
        )


def _question(asked: Sequence[str]) -> str | None:
    """Return the one question that was asked beside the plan itself."""
    if len(asked) > 1:
        raise UsageError(f"pass {' or '.join(asked)}: each prints an answer of its own")
    return asked[0] if asked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCall:
    """One `oomguard plan`: the job, where it is planned for (None: every GPU), and the output.

    `gpus` is how many were stated, None if none were, `AUTO` to find how many are needed;
    `count` is for how many the job was read.
    """

    source: JobSource
    prepared: Prepared
    target: Target | None
    gpus: int | None
    count: int
    host_bytes: int | None
    index: FitIndex
    verbose: bool = False
    as_json: bool = False
    as_csv: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the numbers of GPUs to answer for where one plan is not enough."""
        if self.gpus:
            return (self.gpus,)
        return EACH_COUNT if self.target else COUNTS

    def show(
        self,
        document: Callable[[], object],
        text: Callable[[], None],
        table: Callable[[], str] = str,
    ) -> None:
        """Print an answer, and what happened to the history database."""
        if self.index.lost is not None:
            secho(self.index.lost, fg="yellow", err=True)
        if self.as_json:
            print_json(document())
        elif self.as_csv:
            print_page(redact(table()))
        else:
            text()


def plan_call(
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
    count = gpus or max(1, len(here))
    prepared = source.on(count)
    return PlanCall(
        source=source,
        prepared=prepared,
        target=named or (target_here(prepared, here) if gpu != ALL else None),
        gpus=gpus,
        count=count,
        host_bytes=host_bytes,
        index=FitIndex(Path(prepared.options.fits) if prepared.options.fits else None),
    )


def _cards(call: PlanCall, question: str | None, prices: Path | None) -> None:
    """Answer for every GPU that is known."""
    if question not in (None, "--gpus auto"):
        raise UsageError(
            f"{question} is about one GPU",
            next_step="Add --gpu NAME or --gpu-memory SIZE.",
        )
    known = read_prices(prices) if prices else {}
    table = card_table(
        call.source,
        call.prepared.job,
        call.counts,
        (call.target,) if call.target else catalogue(),
        host_bytes=call.host_bytes,
        index=call.index,
    )
    table = replace(table, prices=known)
    if call.target is not None and len(table.global_batches) == 1:
        (gpus,) = table.global_batches
        _note(f"--gpus auto has no effect: the job starts on {gpus} by its own settings")
    call.show(lambda: cards_document(table), lambda: print_cards(table, verbose=call.verbose))


def _largest(call: PlanCall, target: Target, field: str) -> None:
    """Answer `--max`."""
    job = replayed_job(call.prepared, target, host_bytes=call.host_bytes, index=call.index)
    found = largest_fit(job, field)
    call.show(lambda: largest_document(found), lambda: print_largest(found, gpu=target.name))


def _sweep(call: PlanCall, target: Target, swept: Sequence[Swept]) -> None:
    """Answer `--sweep`."""
    job = replayed_job(call.prepared, target, host_bytes=call.host_bytes, index=call.index)
    found = sweep(job, swept)
    call.show(
        lambda: sweep_document(found),
        lambda: print_sweep(found, gpu=target.name),
        lambda: sweep_csv(found),
    )


def _compare(call: PlanCall, target: Target, trains: Sequence[Path]) -> None:
    """Answer `--compare`."""
    configs = []
    for train in trains:
        prepared = replace(call.source, train=train).on(call.count)
        job = replayed_job(prepared, target, host_bytes=call.host_bytes, index=call.index)
        planned = job.planned()
        configs.append(Compared(file=train, planned=planned, answer_seconds=job.answer_seconds))
    call.show(
        lambda: compared_document(configs),
        lambda: print_compared(configs, gpu=target.name),
        lambda: compared_csv(configs),
    )


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

    call.show(lambda: plan_document(planned, explain=explain), text)
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


def plan_document(planned: PlannedJob, *, explain: bool = False) -> dict[str, object]:
    """Return a plan as `--json` prints it."""
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
