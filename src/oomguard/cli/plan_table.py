"""An outlook as a person reads it: peaks, bars of terms, costs, and the first rung that fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from oomguard.catalogue.lookup import Model
from oomguard.cli.console import COSTS, show_change
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.predict.forecast import Capacity, Forecast
from oomguard.units import show_bytes

_WIDTH = 36
_FITS = {Fits.YES: "fits", Fits.NO: "does not fit", Fits.UNSURE: "may fit"}
_COLOURS = {Fits.YES: "green", Fits.NO: "red", Fits.UNSURE: "yellow"}


def print_forecast(
    job: Job,
    model: Model,
    room: Capacity,
    found: Forecast,
    *,
    notes: tuple[str, ...],
    explained: Mapping[str, str] | None,
) -> None:
    """Print the asked plan, every rung, and the one that is chosen."""
    click.echo(f"{model.name} ({model.source})")
    click.echo(
        f"{job.framework}, {job.world.size} x {show_bytes(room.device_bytes)}, "
        f"global batch {job.global_batch}"
    )
    click.echo()
    _line("as asked", show_plan(found.asked.plan), found.asked.estimate, found.asked.fits)
    for line in bars(found.asked.estimate, room.device_bytes):
        click.echo(f"    {line}")
    click.echo()
    _rungs(found)
    _conclusion(found, room)
    for term, text in (explained or {}).items():
        click.echo(f"    {term:<26}{text}")
    for note in notes:
        click.echo(f"note: {note}")


def show_plan(plan: Plan) -> str:
    """Show what of a plan decides its memory."""
    words = [f"micro batch {plan.micro_batch} x {plan.accumulation}"]
    if plan.sequence_length is not None:
        words.append(f"{plan.sequence_length} tokens")
    named = (plan.precision, plan.tuning, plan.quantization, plan.sharding)
    words += [value.value for value in named if value is not None and value.value != "none"]
    return ", ".join(words)


def bars(estimate: MemoryEstimate, capacity_bytes: int) -> Iterator[str]:
    """Draw each term to the scale of the larger of peak and capacity."""
    whole = max(estimate.expected_bytes, capacity_bytes)
    for term, size in sorted(estimate.terms.items(), key=lambda item: -item[1]):
        bar = "█" * round(_WIDTH * size / whole) or "▏"
        yield f"{term:<26}{show_bytes(size):>11}  {bar}"
    if estimate.host_bytes:
        yield f"{'host while loading':<26}{show_bytes(estimate.host_bytes):>11}"


def _rungs(found: Forecast) -> None:
    taken = [rung for rung in found.rungs if rung.skipped is None]
    for number, rung in enumerate(taken, start=1):
        if rung.step is None or rung.estimate is None or rung.fits is None:
            continue
        changes = ", ".join(show_change(change) for change in rung.step.changes)
        cost = COSTS[rung.step.fidelity]
        mark = ">" if found.chosen is not None and rung is found.rungs[found.chosen] else " "
        name = f"{mark}{number:>2} {rung.strategy}"
        _line(name, f"{changes} [{cost}]", rung.estimate, rung.fits)
    if not taken:
        click.echo("No rung of the ladder would change this job.")
    for rung in found.rungs:
        if rung.skipped is not None:
            click.secho(f"   - {rung.strategy}: {rung.skipped}", dim=True)
    click.echo()


def _line(name: str, what: str, estimate: MemoryEstimate, fits: Fits) -> None:
    between = f"{show_bytes(estimate.low_bytes)} to {show_bytes(estimate.high_bytes)}"
    click.echo(f"{name}: {what}")
    peak = click.style(f"{show_bytes(estimate.expected_bytes)}, {_FITS[fits]}", fg=_COLOURS[fits])
    click.echo(f"    {peak} ({between}, {estimate.method})")


def _host(found: Forecast, room: Capacity) -> None:
    if room.host_bytes is not None and room.host_fits(found.asked.estimate) is not Fits.YES:
        need, have = show_bytes(found.asked.estimate.host_bytes), show_bytes(room.host_bytes)
        click.secho(f"Loading takes {need} of host memory, and there are {have}.", bold=True)


def _conclusion(found: Forecast, room: Capacity) -> None:
    chosen = found.chosen
    _host(found, room)
    if found.asked.fits is Fits.YES:
        click.secho("It fits as asked.", bold=True)
    elif chosen is None:
        click.secho("No rung is sure to fit.", bold=True)
    else:
        rung = found.rungs[chosen]
        click.secho(f"The first that fits is {rung.strategy}:", bold=True)
        for line in bars(rung.estimate, room.device_bytes) if rung.estimate else ():
            click.echo(f"    {line}")
