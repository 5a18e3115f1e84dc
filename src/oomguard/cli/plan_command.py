"""`oomguard plan`: estimate memory before launching, and find the first change that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from oomguard.cli.console import COSTS, show_change, show_plan
from oomguard.cli.option_types import SIZE
from oomguard.cli.options import COMMAND, PLAN, WithCommand, as_json, flags, train_file, verbose
from oomguard.cli.output import print_json
from oomguard.cli.plan_job import PlannedJob, Rejection, plan_job
from oomguard.cli.prepare import prepare
from oomguard.errors import UsageError, Where
from oomguard.estimate.cards import Card, card_named
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import differences
from oomguard.job.training_job import Device
from oomguard.predict.forecast import Capacity, Forecast
from oomguard.predict.history import FitIndex
from oomguard.units import show_bytes

_WIDTH = 36
_FITS = {Fits.YES: "fits", Fits.NO: "does not fit", Fits.UNSURE: "may fit"}
_COLOURS = {Fits.YES: "green", Fits.NO: "red", Fits.UNSURE: "yellow"}


@click.command("plan", cls=WithCommand)
@train_file
@flags(PLAN)
@click.option("--gpu", metavar="NAME", help="GPU model, e.g. 'RTX 3090' or a100-80.")
@click.option("--gpu-memory", type=SIZE.flag_type, help="Memory of one GPU, e.g. 24GiB.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
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
    if prepared.job.device is Device.CPU:
        raise UsageError(
            "this job runs on the CPU, so there is no GPU memory to plan",
            next_step="Remove use_cpu from its settings to plan it for a GPU.",
        )
    job = replace(
        prepared.job,
        bfloat16=card is None or card.bfloat16,
        hopper=card is not None and card.hopper,
    )
    index = FitIndex(Path(prepared.options.fits) if prepared.options.fits else None)
    planned = plan_job(
        replace(prepared, job=job),
        Capacity(device_bytes=device_bytes, host_bytes=host_memory),
        device=card.name if card else None,
        index=index,
    )
    if index.lost is not None:
        click.secho(index.lost, fg="yellow", err=True)
    if as_json:
        print_json(_document(planned, explain=explain_terms))
    else:
        print_plan(planned, explain=explain_terms, verbose=verbose)


def _device(gpu: str | None, gpu_memory: int | None) -> tuple[Card | None, int]:
    """Return the GPU to plan for, None if only its size is known, and its bytes."""
    if (gpu is None) == (gpu_memory is None):
        raise UsageError(
            "pass either --gpu or --gpu-memory",
            where=Where(key="--gpu"),
            next_step="For example: --gpu 'RTX 3090', or --gpu-memory 24GiB.",
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
        "notes": planned.notes,
        "seconds": planned.seconds,
    }
    if not explain:
        return document
    rung = found.asked if found.chosen is None else found.rungs[found.chosen]
    return {**document, "arithmetic": planned.explain(rung)}


def print_plan(planned: PlannedJob, *, explain: bool = False, verbose: bool = False) -> None:
    """Print the verdict and the first plan that fits, then the terms, then the ladder.

    `explain` shows the product behind each term, `verbose` why strategies were skipped.
    """
    job, model, found = planned.prepared.job, planned.model, planned.forecast
    capacity = planned.capacity
    click.echo(f"{model.name} ({model.source})")
    click.echo(
        f"{job.framework}, {job.world.size} x {show_bytes(capacity.device_bytes)}, "
        f"global batch {job.global_batch}"
    )
    click.echo(f"trained: {planned.trained(found.asked.plan)}")
    click.echo()
    if planned.rejected is None:
        _verdict(found, capacity)
    else:
        _rejected(planned.rejected, planned.prepared.adapter.title)
    for missing in planned.unmodelled:
        click.secho(f"The estimate leaves out {missing.sentence}.", fg="yellow")
    click.echo()
    click.echo(f"requested config: {show_plan(found.asked.plan)}")
    for line in bars(found.asked.estimate, capacity.device_bytes):
        click.echo(f"    {line}")
    if explain:
        _products(planned)
    click.echo()
    _ladder(found, verbose=verbose)
    for note in dict.fromkeys(planned.notes):
        click.echo(f"note: {note}")


def _products(planned: PlannedJob) -> None:
    """Print how each term is computed, for the requested config and for the first that fits."""
    found = planned.forecast
    rows = {"computed as": planned.explain(found.asked)}
    if found.chosen is not None:
        rung = found.rungs[found.chosen]
        rows[f"with {rung.strategy}, trained: {planned.trained(rung.plan or found.asked.plan)}"] = (
            planned.explain(rung)
        )
    for title, products in rows.items():
        click.echo(f"  {title}")
        for term, text in products.items():
            click.echo(f"    {term:<26}{text}")


def _verdict(found: Forecast, capacity: Capacity) -> None:
    asked = found.asked
    peak, available = _peak(asked.estimate), show_bytes(capacity.device_bytes)
    click.secho(
        f"The requested config {_FITS[asked.fits]}: {peak}, {available} available.",
        fg=_COLOURS[asked.fits],
        bold=True,
    )
    if capacity.host_bytes is not None and capacity.host_fits(asked.estimate) is not Fits.YES:
        need, have = show_bytes(asked.estimate.host_bytes), show_bytes(capacity.host_bytes)
        click.secho(
            f"Loading needs {need} of host memory, but only {have} is available.", bold=True
        )
    if asked.fits is Fits.YES:
        return
    if found.chosen is None:
        click.secho("No strategy is guaranteed to fit.", bold=True)
        return
    rung = found.rungs[found.chosen]
    if rung.plan is None or rung.estimate is None:
        return
    steps = [one.step for one in found.rungs[: found.chosen + 1] if one.step is not None]
    cost = COSTS[max((step.fidelity for step in steps), key=lambda fidelity: fidelity.cost)]
    changes = ", ".join(map(show_change, differences(asked.plan, rung.plan)))
    click.secho(f"The first that fits is {rung.strategy}:", bold=True)
    click.echo(f"    {changes} [{cost}]")
    click.echo(f"    {_peak(rung.estimate)}")


def _rejected(rejected: Rejection, title: str) -> None:
    """Print the framework's message about the requested config, and each way around it."""
    click.secho(f"{title} rejects the requested config: {rejected.message}", fg="red", bold=True)
    for one in rejected.alternatives:
        click.echo(f"  {one.change} it {_FITS[one.fits]}: {_peak(one.estimate)}")


def _peak(estimate: MemoryEstimate) -> str:
    low, high = show_bytes(estimate.low_bytes), show_bytes(estimate.high_bytes)
    return f"{show_bytes(estimate.expected_bytes)} expected ({low} to {high}, {estimate.method})"


def bars(estimate: MemoryEstimate, capacity_bytes: int) -> Iterator[str]:
    """Yield a bar per term, scaled to the peak or the capacity, whichever is larger."""
    whole = max(estimate.expected_bytes, capacity_bytes)
    for term, size in sorted(estimate.terms.items(), key=lambda item: -item[1]):
        bar = "█" * round(_WIDTH * size / whole) or "▏"
        yield f"{term:<26}{show_bytes(size):>11}  {bar}"
    if estimate.host_bytes:
        yield f"{'host while loading':<26}{show_bytes(estimate.host_bytes):>11}"


def _ladder(found: Forecast, *, verbose: bool) -> None:
    taken = [rung for rung in found.rungs if rung.skipped is None]
    skipped = [rung for rung in found.rungs if rung.skipped is not None]
    if not taken:
        click.echo("No strategy applies to this job.")
    for number, rung in enumerate(taken, start=1):
        if rung.step is None or rung.estimate is None or rung.fits is None:
            continue
        changes = ", ".join(show_change(change) for change in rung.step.changes)
        mark = ">" if found.chosen is not None and rung is found.rungs[found.chosen] else " "
        click.echo(f"{mark}{number:>2} {rung.strategy}: {changes} [{COSTS[rung.step.fidelity]}]")
        click.secho(f"    {_FITS[rung.fits]}: {_peak(rung.estimate)}", fg=_COLOURS[rung.fits])
    if verbose:
        for rung in skipped:
            click.secho(f"   - {rung.strategy}: {rung.skipped}", dim=True)
    elif skipped:
        count = f"{len(skipped)} strategies do" if len(skipped) > 1 else "1 strategy does"
        click.secho(f"   - {count} not apply; --verbose lists the reasons", dim=True)
    click.echo()
