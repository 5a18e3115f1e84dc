"""A forecast as text: the verdict, the first plan that fits, the terms, then the ladder."""

from __future__ import annotations

from collections.abc import Iterator

import click

from oomguard.cli.console import COSTS, show_change, show_plan
from oomguard.cli.plan_job import PlannedJob
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import differences
from oomguard.predict.forecast import Capacity, Forecast
from oomguard.units import show_bytes

_WIDTH = 36
_FITS = {Fits.YES: "fits", Fits.NO: "does not fit", Fits.UNSURE: "may fit"}
_COLOURS = {Fits.YES: "green", Fits.NO: "red", Fits.UNSURE: "yellow"}


def print_plan(planned: PlannedJob, *, explain: bool = False, verbose: bool = False) -> None:
    """Print the verdict and the first plan that fits, then the terms, then the ladder.

    `explain` shows the product behind each term, `verbose` why strategies were skipped.
    """
    job, model, found = planned.prepared.job, planned.model, planned.forecast
    capacity = planned.room
    click.echo(f"{model.name} ({model.source})")
    click.echo(
        f"{job.framework}, {job.world.size} x {show_bytes(capacity.device_bytes)}, "
        f"global batch {job.global_batch}"
    )
    click.echo(f"trained: {planned.trained(found.asked.plan)}")
    click.echo()
    _verdict(found, capacity)
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


def _peak(estimate: MemoryEstimate) -> str:
    low, high = show_bytes(estimate.low_bytes), show_bytes(estimate.high_bytes)
    return f"{show_bytes(estimate.expected_bytes)} expected ({low} to {high}, {estimate.method})"


def bars(estimate: MemoryEstimate, capacity_bytes: int) -> Iterator[str]:
    """Draw each term to the scale of the larger of peak and capacity."""
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
        click.echo("No strategy on the ladder changes this job.")
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
