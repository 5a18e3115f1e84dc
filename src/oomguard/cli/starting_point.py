"""Where a launch starts: with the plan that fit before, or with the first that should fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec

from oomguard.cli.console import Console
from oomguard.cli.plan_job import PlannedJob, plan_job
from oomguard.cli.prepare import Prepared
from oomguard.errors import OomguardError, UsageError
from oomguard.estimate.cards import card_named
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.training_job import Device
from oomguard.job.unmodelled import Memory
from oomguard.machine.gpus import Gpu, gpus
from oomguard.predict.forecast import Capacity, Fit, Forecast, cheapest_fit
from oomguard.predict.history import FitIndex
from oomguard.predict.prediction_request import cuda_overhead
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import HistoryRef, Predicted, Start
from oomguard.units import show_bytes

#: A launch waits this long for traces; the remaining plans are estimated analytically.
BUDGET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What is known of a job before its launch, and where to record how it went.

    `fit` is the first plan that should fit, which need not be on the way up the ladder.
    `history_error` says why the history database could not be used, None if it could.
    """

    history: HistoryRef | None = None
    planned: PlannedJob | None = None
    start: Start | None = None
    fit: Fit | None = None
    history_error: str | None = None

    @property
    def predicted(self) -> tuple[Predicted, ...]:
        """Return the peak that was predicted for each plan."""
        if self.planned is None:
            return ()
        found, factors = self.planned.forecast, self.planned.ratios.factors
        peaks = {found.asked.plan: found.asked.estimate}
        peaks |= {r.plan: r.estimate for r in found.rungs if r.plan and r.estimate}
        peaks |= {fit.plan: fit.estimate for fit in (self.fit,) if fit}
        covers_all = not leaves_out(self.planned)
        corrected_by = {term.value: round(factor, 4) for term, factor in factors.items()}
        return tuple(
            Predicted(
                plan=plan,
                allocated_bytes=peak.allocated_bytes,
                reserved_bytes=peak.reserved_bytes,
                expected_bytes=peak.expected_bytes,
                method=peak.method,
                terms=peak.terms,
                corrected_by=corrected_by,
                covers_all=covers_all,
            )
            for plan, peak in peaks.items()
        )


def choose_start(prepared: Prepared, console: Console, *, index: FitIndex) -> StartingPoint:
    """Choose the plan to start from; on any error, start from the requested one."""
    cards = gpus()
    capacity = own_capacity(prepared, cards)
    if capacity is None:
        return StartingPoint()
    found = StartingPoint()
    try:
        key = _key(prepared, capacity)
        found = StartingPoint(history=HistoryRef(index=str(index.path.absolute()), key=key))
        if not prepared.limits.grow:
            found = _from_history_or_forecast(
                prepared, console, found, capacity=capacity, cards=cards, index=index
            )
    except OomguardError as error:
        console.say(f"no prediction: {error.what}")
    except Exception as error:  # noqa: BLE001  a prediction never stops a launch
        console.say(f"no prediction: {type(error).__name__}: {error}")
    if index.lost is not None:
        console.say(index.lost, "yellow")
    return replace(found, history_error=index.lost)


def _from_history_or_forecast(
    prepared: Prepared,
    console: Console,
    unknown: StartingPoint,
    *,
    capacity: Capacity,
    cards: tuple[Gpu, ...],
    index: FitIndex,
) -> StartingPoint:
    before = _fit_before(prepared, unknown.history, index)
    if before is not None:
        console.say(f"starting {before.reason}")
    if before is not None and not prepared.limits.probe:  # a probe is compared with a prediction
        return replace(unknown, start=before)
    console.say(f"estimating what fits in {show_bytes(capacity.device_bytes)}")
    device = device_name(cards)
    planned = plan_job(prepared, capacity, device=device, index=index, budget_s=BUDGET_S)
    # A later start costs fidelity: not on a prediction that leaves something out.
    fit = None if leaves_out(planned) else _first_fit(planned, capacity)
    start = before or (_start(fit) if fit else None)
    peak = show_bytes(planned.forecast.asked.estimate.expected_bytes)
    starting = f"; starting {start.reason}" if start and not before else ""
    console.say(f"estimated peak of the requested config: {peak}{starting}")
    key, history = planned.history_key, unknown.history
    if key is not None and history is not None:
        history = replace(history, device=key.device, versions=dict(key.versions), model=key.model)
    return StartingPoint(history=history, planned=planned, start=start, fit=fit)


def leaves_out(planned: PlannedJob) -> bool:
    """Return whether the prediction leaves out something that takes memory of the GPU."""
    return any(one.memory is Memory.GPU for one in planned.unmodelled)


def _first_fit(planned: PlannedJob, capacity: Capacity) -> Fit | None:
    """Return the first plan that should fit, without the costly changes that it does not need."""
    first = first_expected_fit(planned.forecast, capacity)
    if first is None:
        return None
    cheapest = cheapest_fit(
        planned.request,
        planned.prepared.ladder,
        first,
        planned.predictor,
        lambda _, estimate: _should_fit(estimate, capacity),
    )
    return cheapest or first


def first_expected_fit(found: Forecast, capacity: Capacity) -> Fit | None:
    """Return the first plan whose expected peak fits; None if the requested one does, or none.

    The expected value decides, not the upper bound: a failed attempt costs minutes, an
    unnecessary change costs fidelity.
    """
    if _should_fit(found.asked.estimate, capacity):
        return None
    fitting = (
        index
        for index, rung in enumerate(found.rungs)
        if rung.estimate is not None and _should_fit(rung.estimate, capacity)
    )
    return found.fit_at(next(fitting, None))


def _start(fit: Fit) -> Start:
    expected = show_bytes(fit.estimate.expected_bytes)
    return Start(
        spec=AttemptSpec(plan=fit.plan, steps=fit.steps, path=fit.path),
        reason=f"with {fit.strategy}, estimated at {expected}",
    )


def _should_fit(estimate: MemoryEstimate, capacity: Capacity) -> bool:
    host = capacity.host_fits(estimate) is not Fits.NO
    return host and estimate.expected_bytes <= capacity.device_bytes


def own_capacity(prepared: Prepared, cards: tuple[Gpu, ...]) -> Capacity | None:
    """Return the capacity of a GPU, None for a CPU job; a limit excludes the CUDA context."""
    limit = prepared.limits.gpu_memory_bytes
    if prepared.job.device is not Device.CUDA or not (cards or limit):
        return None
    sizes = [card.total_bytes for card in cards]
    limited = [limit + cuda_overhead(prepared.job).context_bytes] if limit else []
    return Capacity(
        device_bytes=min((*sizes, *limited)), host_bytes=prepared.limits.host_memory_bytes
    )


def _fit_before(prepared: Prepared, history: HistoryRef | None, index: FitIndex) -> Start | None:
    """Return the plan with which the same job fit on the same device before."""
    path = index.recall(history.key) if history else None
    retaken = prepared.ladder.retake(prepared.job, path) if path is not None else None
    if path is None or retaken is None:
        return None
    plan, steps = retaken
    changes = f"with {', '.join(path)}" if path else "with the requested config"
    return Start(
        spec=AttemptSpec(plan=plan, steps=steps, path=path), reason=f"{changes}, which fit before"
    )


def _key(prepared: Prepared, capacity: Capacity) -> str:
    """Return the key of a job on a device; plan, model, world size and capacity are part of it."""
    job = prepared.job
    model = prepared.adapter.memory_settings(job).model
    parts = [job.framework, model, job.asked, job.world, capacity, prepared.limits.ladder]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def device_name(cards: tuple[Gpu, ...]) -> str | None:
    """Return the name of the GPUs here, as the catalogue spells it if it has them."""
    if not cards:
        return None
    try:
        return card_named(cards[0].name).name
    except UsageError:
        return cards[0].name
