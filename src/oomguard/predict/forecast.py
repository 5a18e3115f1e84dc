"""The forecast of a job: the requested plan and each strategy, its peak and whether it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from oomguard.estimate.memory import Fits, MemoryEstimate, Method
from oomguard.evidence.verdict import Verdict
from oomguard.job.plan import Plan
from oomguard.job.unmodelled import Direction, Memory, Unmodelled
from oomguard.ladder.climb import Ladder
from oomguard.ladder.enumerate import DEVICE, HOST, Walk, WalkedRung, walk
from oomguard.ladder.shorten import cheapest
from oomguard.ladder.strategy_contract import Fidelity, Step
from oomguard.predict.prediction_request import Prediction, PredictionRequest
from oomguard.predict.predictor import by_arithmetic

#: The host's peak is arithmetic alone: between this share of the capacity and all of it, unsure.
HOST_SURE = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The memory of one GPU, and of one node's host (None: not compared)."""

    device_bytes: int
    host_bytes: int | None = None

    def fits(self, estimate: MemoryEstimate) -> Fits:
        """Compare a plan's peak with both."""
        device, host = estimate.fits(self.device_bytes), self.host_fits(estimate)
        return next(fits for fits in (Fits.NO, Fits.UNSURE, Fits.YES) if fits in (device, host))

    def host_fits(self, estimate: MemoryEstimate) -> Fits:
        """Compare the peak of the host alone."""
        if self.host_bytes is None or estimate.host_bytes <= HOST_SURE * self.host_bytes:
            return Fits.YES
        return Fits.NO if estimate.host_bytes > self.host_bytes else Fits.UNSURE


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPeak:
    """A plan with its peak and whether it fits."""

    plan: Plan
    estimate: MemoryEstimate
    fits: Fits


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyForecast:
    """One strategy: where it leads, or why it is not taken."""

    strategy: str
    plan: Plan | None = None
    step: Step | None = None
    estimate: MemoryEstimate | None = None
    fits: Fits | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A plan that fits, with the steps to it; `strategy` is the one that made it fit.

    `undone` are costly strategies that are on the way to it and were left out: it fits without.
    """

    strategy: str
    path: tuple[str, ...]
    steps: tuple[Step, ...]
    plan: Plan
    estimate: MemoryEstimate
    undone: tuple[str, ...] = ()

    @property
    def fidelity(self) -> Fidelity:
        """The strongest of the changes."""
        return max((step.fidelity for step in self.steps), key=lambda one: one.cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All strategies in order; each plan builds on the one before.

    `prepared` are the steps that are taken before the first attempt whatever it needs; `cheapest`
    is the first fit without the costly changes that it does not need, None if it needs all.
    """

    asked: PlannedPeak
    prepared: tuple[Step, ...] = ()
    rungs: tuple[StrategyForecast, ...] = ()
    cheapest: Fit | None = None
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> int | None:
        """The first strategy that fits; None if the requested plan does, or nothing."""
        if self.asked.fits is Fits.YES:
            return None
        return next((i for i, rung in enumerate(self.rungs) if rung.fits is Fits.YES), None)

    @property
    def first_fit(self) -> Fit | None:
        """The first plan that fits, without what it does not need; None if none does."""
        return self.cheapest or self.fit_at(self.chosen)

    def fit_at(self, index: int | None) -> Fit | None:
        """Return the plan of a rung with all steps up to it; None for none."""
        rung = self.rungs[index] if index is not None else None
        if rung is None or rung.plan is None or rung.estimate is None:
            return None
        steps = tuple(one.step for one in self.rungs[: (index or 0) + 1] if one.step is not None)
        return Fit(
            strategy=rung.strategy,
            path=tuple(step.strategy for step in steps),
            steps=(*self.prepared, *steps),
            plan=rung.plan,
            estimate=rung.estimate,
        )


#: By how much an effect that is not modelled widens an estimate's interval, upwards and downwards.
#: States of low rank and models split over 8 GPUs leave far less than half.
_MORE, _LESS = 2, 8


def widened(estimate: MemoryEstimate, unmodelled: Sequence[Unmodelled]) -> MemoryEstimate:
    """Return an estimate whose interval covers effects that are not modelled, on their side."""
    directions = {one.direction for one in unmodelled}
    more = bool(directions & {Direction.MORE, Direction.EITHER})
    less = bool(directions & {Direction.LESS, Direction.EITHER})
    return replace(
        estimate,
        high_bytes=estimate.high_bytes * (_MORE if more else 1),
        low_bytes=estimate.low_bytes // (_LESS if less else 1),
    )


def missing_from(
    estimate: MemoryEstimate, unmodelled: Sequence[Unmodelled]
) -> tuple[Unmodelled, ...]:
    """Return the effects that an estimate made in its way does not include."""
    analytic = estimate.method == Method.ANALYTIC.value
    return tuple(one for one in unmodelled if analytic or not one.traced)


def planned_peak(
    plan: Plan, estimate: MemoryEstimate, capacity: Capacity, unmodelled: Sequence[Unmodelled]
) -> PlannedPeak:
    """Return a plan's peak; with effects that are not modelled, it is never said to fit.

    One on the host leaves the verdict alone where twice the host's peak would fit.
    """
    unmodelled = missing_from(estimate, unmodelled)
    on_gpu = [one for one in unmodelled if one.memory is Memory.GPU]
    estimate = widened(estimate, on_gpu)
    fits = capacity.fits(estimate)
    doubled = replace(estimate, host_bytes=estimate.host_bytes * _MORE)
    on_host = len(on_gpu) < len(unmodelled) and capacity.host_fits(doubled) is not Fits.YES
    if (on_gpu or on_host) and fits is Fits.YES:
        fits = Fits.UNSURE
    return PlannedPeak(plan=plan, estimate=estimate, fits=fits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPeaks:
    """The peak of the first plan and of each on the way up the ladder, for any capacity."""

    path: Walk
    estimates: Mapping[Plan, MemoryEstimate]
    notes: tuple[str, ...] = ()

    def compared(
        self, asked: Plan, capacity: Capacity, unmodelled: Sequence[Unmodelled]
    ) -> Forecast:
        """Compare each peak with a capacity; `asked` is the plan as the user wrote it."""
        peaks = {
            plan: planned_peak(plan, estimate, capacity, unmodelled)
            for plan, estimate in self.estimates.items()
        }
        return Forecast(
            asked=replace(peaks[self.path.first], plan=asked),
            prepared=self.path.prepared,
            rungs=tuple(_strategy_forecast(rung, peaks) for rung in self.path.rungs),
            notes=self.notes,
        )


def ladder_peaks(
    request: PredictionRequest,
    ladder: Ladder,
    capacity: Capacity,
    predict: Callable[[PredictionRequest], Prediction],
) -> LadderPeaks:
    """Walk the whole ladder and predict every plan on it; the request's own plans do not count.

    Of the capacity only the host's decides where the walk leads.
    """

    def why(plan: Plan) -> Verdict:
        if capacity.host_bytes is None:
            return DEVICE
        tight = capacity.host_fits(by_arithmetic(request, plan)) is Fits.NO
        return HOST if tight else DEVICE

    path = walk(request.job, ladder, why)
    plans = [path.first, *(rung.plan for rung in path.rungs if rung.plan is not None)]
    prediction = predict(replace(request, plans=plans))
    estimates = dict(zip(plans, prediction.estimates, strict=True))
    return LadderPeaks(path=path, estimates=estimates, notes=prediction.notes)


def forecast(
    request: PredictionRequest,
    ladder: Ladder,
    capacity: Capacity,
    predict: Callable[[PredictionRequest], Prediction],
    *,
    unmodelled: Sequence[Unmodelled] = (),
) -> Forecast:
    """Predict every plan on the ladder and compare it with a capacity."""
    peaks = ladder_peaks(request, ladder, capacity, predict)
    found = peaks.compared(request.job.asked, capacity, unmodelled)
    return without_needless(found, request, ladder, capacity, predict, unmodelled=unmodelled)


def without_needless(
    found: Forecast,
    request: PredictionRequest,
    ladder: Ladder,
    capacity: Capacity,
    predict: Callable[[PredictionRequest], Prediction],
    *,
    unmodelled: Sequence[Unmodelled] = (),
) -> Forecast:
    """Return a forecast whose first fit leaves out the costly changes that it does not need."""

    def fits(plan: Plan, estimate: MemoryEstimate) -> bool:
        return planned_peak(plan, estimate, capacity, unmodelled).fits is Fits.YES

    first = found.first_fit
    if first is None or first.fidelity is Fidelity.SAME_MATH:
        return found
    return replace(found, cheapest=cheapest_fit(request, ladder, first, predict, fits))


def cheapest_fit(
    request: PredictionRequest,
    ladder: Ladder,
    fit: Fit,
    predict: Callable[[PredictionRequest], Prediction],
    fits: Callable[[Plan, MemoryEstimate], bool],
) -> Fit | None:
    """Return a fit without the costly changes that it does not need; None if it needs all.

    Candidates are compared by arithmetic, and what is left is predicted like any plan.
    """
    job = request.job
    kept = cheapest(job, fit.path, ladder, lambda plan: fits(plan, by_arithmetic(request, plan)))
    retaken = ladder.retake(job, kept)
    if kept == fit.path or retaken is None:
        return None
    plan, steps = retaken
    (estimate,) = predict(replace(request, plans=(plan,))).estimates
    if not fits(plan, estimate):
        return None
    kept = tuple(step.strategy for step in steps if step.strategy in kept)
    undone = tuple((Counter(fit.path) - Counter(kept)).elements())
    return replace(fit, path=kept, steps=steps, plan=plan, estimate=estimate, undone=undone)


def _strategy_forecast(rung: WalkedRung, peaks: Mapping[Plan, PlannedPeak]) -> StrategyForecast:
    if rung.plan is None:
        return StrategyForecast(strategy=rung.strategy, skipped=rung.skipped)
    peak = peaks[rung.plan]
    return StrategyForecast(
        strategy=rung.strategy,
        plan=peak.plan,
        step=rung.step,
        estimate=peak.estimate,
        fits=peak.fits,
    )
