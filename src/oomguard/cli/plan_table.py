"""What `plan` prints: the verdict, the first change that fits, the terms, then the ladder."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.cli.output import echo, secho
from oomguard.cli.plan_job import PlannedJob, Rejection
from oomguard.cli.plan_text import COSTS, show_changes, show_plan, skipped_lines
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import differences
from oomguard.job.unmodelled import Memory
from oomguard.ladder.strategy_contract import Skip
from oomguard.predict.forecast import Capacity, Forecast, PlannedPeak, StrategyForecast
from oomguard.units import show_bytes

_WIDTH = 36
COLOURS = {Fits.YES: "green", Fits.NO: "red", Fits.UNSURE: "yellow"}


def print_plan(
    planned: PlannedJob, *, gpu: str | None = None, explain: bool = False, verbose: bool = False
) -> None:
    """Print a forecast for a GPU of this name.

    `explain` shows the product behind each term, `verbose` why strategies were skipped, and the
    ladder of a config that fits as requested.
    """
    found, capacity, asked = planned.forecast, planned.capacity, planned.forecast.asked
    print_head(planned, gpu)
    echo()
    if planned.rejected is None:
        _verdict(found, capacity)
    else:
        _rejected(planned.rejected, planned.prepared.adapter.title, capacity)
    for line in missing_lines(planned):
        secho(line, fg="yellow")
    echo()
    echo(f"requested config: {show_plan(asked.plan)}")
    for line in bars(asked.estimate, capacity.device_bytes):
        echo(f"    {line}")
    if explain:
        _products(planned)
    echo()
    if asked.fits is not Fits.YES or verbose:
        _ladder(found, capacity, verbose=verbose)
    for note in dict.fromkeys((*planned.notes, *_left_out_on_the_host(planned))):
        echo(f"note: {note}")


def print_head(planned: PlannedJob, gpu: str | None) -> None:
    """Print the model, the GPUs and what is trained."""
    job, model = planned.prepared.job, planned.model
    size = show_bytes(planned.capacity.device_bytes)
    echo(f"{model.name} ({model.source})")
    card = f"{gpu} ({size} usable)" if gpu else size
    echo(f"{job.framework} on {job.world.size} x {card}, global batch {job.global_batch}")
    echo(f"trained: {planned.trained(planned.forecast.asked.plan)}")


def missing_lines(planned: PlannedJob) -> Iterator[str]:
    """Yield what the estimate of a GPU's memory leaves out."""
    for missing in planned.unmodelled:
        if missing.memory is Memory.GPU:
            text = missing.sentence
            yield f"The estimate leaves out {text if text.endswith('?') else f'{text}.'}"


def _left_out_on_the_host(planned: PlannedJob) -> Iterator[str]:
    for missing in planned.unmodelled:
        if missing.memory is Memory.HOST:
            yield f"the estimate of host memory leaves out {missing.sentence}"


def _products(planned: PlannedJob) -> None:
    """Print how each term is computed, for the requested config and for the first that fits."""
    found = planned.forecast
    rows = {"computed as": planned.explain(found.asked)}
    fit = found.first_fit
    if fit is not None:
        rows[f"with {fit.strategy}, trained: {planned.trained(fit.plan)}"] = planned.explain(fit)
    for title, products in rows.items():
        echo(f"  {title}")
        for term, text in products.items():
            echo(f"    {term:<26}{text}")


def _verdict(found: Forecast, capacity: Capacity) -> None:
    asked, fit = found.asked, found.first_fit
    fits, colour = _fits(asked, capacity), COLOURS[asked.fits]
    peak, available = show_peak(asked.estimate), show_bytes(capacity.device_bytes)
    if capacity.host_bytes is not None and capacity.host_fits(asked.estimate) is not Fits.YES:
        need, have = show_bytes(asked.estimate.host_bytes), show_bytes(capacity.host_bytes)
        loading = f"loading needs {need} of host memory, {have} available"
        secho(f"The requested config {fits}: {loading}.", fg=colour, bold=True)
        secho(f"On the GPU: {peak}, {available} available.", bold=True)
    else:
        secho(f"The requested config {fits}: {peak}, {available} available.", fg=colour, bold=True)
    if asked.fits is not Fits.YES and fit is None:
        _closest(found, capacity)
    if fit is None:
        return
    number = sum(rung.step is not None for rung in found.rungs[: (found.chosen or 0) + 1])
    changes = show_changes(differences(asked.plan, fit.plan))
    cost = COSTS[fit.fidelity]
    secho(
        f"It fits after strategy {number}, {fit.strategy}, with these changes together:", bold=True
    )
    echo(f"    {changes} [{cost}]")
    echo(f"    {show_peak(fit.estimate)}")
    if fit.undone:
        echo(f"    not needed for it: {', '.join(dict.fromkeys(fit.undone))}")


def _closest(found: Forecast, capacity: Capacity) -> None:
    """Print which strategy comes closest to fitting, if one may fit at all."""
    unsure = [rung for rung in found.rungs if rung.fits is Fits.UNSURE and rung.estimate]
    if not unsure:
        secho("With no strategy on the ladder does it fit.", bold=True)
        return
    best = min(unsure, key=lambda rung: rung.estimate.expected_bytes if rung.estimate else 0)
    if best.estimate is not None:
        secho("With no strategy is it certain to fit. The closest:", bold=True)
        echo(f"    {best.strategy} {_fits(best, capacity)}: {show_peak(best.estimate)}")


def _rejected(rejected: Rejection, title: str, capacity: Capacity) -> None:
    """Print the framework's message about the requested config, and each way around it."""
    secho(f"{title} rejects the requested config: {rejected.message}", fg="red", bold=True)
    for one in rejected.alternatives:
        fits = _words(one.fits, one.estimate, capacity)
        echo(f"  {one.change} it {fits}: {show_peak(one.estimate)}")


def _fits(peak: PlannedPeak | StrategyForecast, capacity: Capacity) -> str:
    if peak.fits is None or peak.estimate is None:
        return ""
    return _words(peak.fits, peak.estimate, capacity)


def _words(fits: Fits, estimate: MemoryEstimate, capacity: Capacity) -> str:
    """Return the verdict in words: an uncertain one leans to the side of the expected peak."""
    if fits is Fits.UNSURE:
        return "may not fit" if estimate.expected_bytes > capacity.device_bytes else "may fit"
    return "fits" if fits is Fits.YES else "does not fit"


def show_peak(estimate: MemoryEstimate) -> str:
    """Return the expected peak with its interval and the method behind it."""
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


def _ladder(found: Forecast, capacity: Capacity, *, verbose: bool) -> None:
    taken = [rung for rung in found.rungs if rung.skipped is None]
    skipped = [
        Skip(strategy=rung.strategy, reason=rung.skipped) for rung in found.rungs if rung.skipped
    ]
    echo(
        "Strategies in the order they are tried, each on top of those before:"
        if taken
        else "No strategy applies to this job."
    )
    before = found.asked.estimate
    for number, rung in enumerate(taken, start=1):
        if rung.step is None or rung.estimate is None or rung.fits is None:
            continue
        changes = show_changes(rung.step.changes)
        mark = ">" if found.chosen is not None and rung is found.rungs[found.chosen] else " "
        echo(f"{mark}{number:>2} {rung.strategy}: {changes} [{COSTS[rung.step.fidelity]}]")
        same = rung.estimate.expected_bytes == before.expected_bytes
        peak = "the peak does not change" if same else show_peak(rung.estimate)
        secho(f"    {_fits(rung, capacity)}: {peak}", fg=COLOURS[rung.fits])
        before = rung.estimate
    if verbose:
        for line in skipped_lines(skipped):
            secho(f"   - {line}", dim=True)
    elif skipped:
        count = f"{len(skipped)} strategies do" if len(skipped) > 1 else "1 strategy does"
        secho(f"   - {count} not apply; --verbose lists the reasons", dim=True)
    echo()
