"""The forecast of a job: the requested plan and each strategy, its peak and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.evidence.verdict import Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, Unmodelled
from oomguard.ladder.climb import Ladder
from oomguard.ladder.enumerate import DEVICE, HOST, walk
from oomguard.ladder.strategy import Step
from oomguard.predict.prediction_request import Prediction, PredictionRequest
from oomguard.predict.predictor import by_arithmetic

#: The host's peak is arithmetic alone: between this share of what there is and all of it, unsure.
HOST_SURE = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one GPU has, and one node's host (None: not asked about)."""

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
class RungOutlook:
    """One strategy: where it leads, or why it is not taken."""

    strategy: str
    plan: Plan | None = None
    step: Step | None = None
    estimate: MemoryEstimate | None = None
    fits: Fits | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All strategies in order; each plan builds on the one before.

    `prepared` are the steps that are taken before the first attempt whatever it needs.
    """

    asked: PlannedPeak
    prepared: tuple[Step, ...] = ()
    rungs: tuple[RungOutlook, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> int | None:
        """The first strategy that fits; None if the requested plan does, or nothing."""
        if self.asked.fits is Fits.YES:
            return None
        return next((i for i, rung in enumerate(self.rungs) if rung.fits is Fits.YES), None)


#: By how much an effect that is not modelled widens an estimate's interval.
_WIDER = 2


def widened(estimate: MemoryEstimate, unmodelled: Sequence[Unmodelled]) -> MemoryEstimate:
    """Return an estimate whose interval covers effects that are not modelled, on their side."""
    directions = {one.direction for one in unmodelled}
    more = bool(directions & {Direction.MORE, Direction.EITHER})
    less = bool(directions & {Direction.LESS, Direction.EITHER})
    return replace(
        estimate,
        high_bytes=estimate.high_bytes * (_WIDER if more else 1),
        low_bytes=estimate.low_bytes // (_WIDER if less else 1),
    )


def forecast(
    job: Job,
    ladder: Ladder,
    room: Capacity,
    question: Callable[[Sequence[Plan]], PredictionRequest],
    predict: Callable[[PredictionRequest], Prediction],
    *,
    unmodelled: Sequence[Unmodelled] = (),
) -> Forecast:
    """Walk the whole ladder and predict every plan on it.

    With effects that are not modelled, no plan is said to fit.
    """

    def fits(estimate: MemoryEstimate) -> Fits:
        found = room.fits(estimate)
        return Fits.UNSURE if unmodelled and found is Fits.YES else found

    arithmetic = question(())

    def why(plan: Plan) -> Verdict:
        tight = room.host_fits(by_arithmetic(arithmetic, plan)) is Fits.NO
        return HOST if tight else DEVICE

    path = walk(job, ladder, why)
    plans = [path.first, *(rung.plan for rung in path.rungs if rung.plan is not None)]
    prediction = predict(question(plans))
    estimates = [widened(one, unmodelled) for one in prediction.estimates]
    peaks = dict(zip(plans, estimates, strict=True))
    rungs = tuple(
        RungOutlook(strategy=rung.strategy, skipped=rung.skipped)
        if rung.plan is None
        else RungOutlook(
            strategy=rung.strategy,
            plan=rung.plan,
            step=rung.step,
            estimate=peaks[rung.plan],
            fits=fits(peaks[rung.plan]),
        )
        for rung in path.rungs
    )
    first_peak = peaks[path.first]
    asked = PlannedPeak(plan=job.asked, estimate=first_peak, fits=fits(first_peak))
    return Forecast(asked=asked, prepared=path.prepared, rungs=rungs, notes=prediction.notes)
