"""Where a launch begins: at the rung that worked before, else at the first that should fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec

from oomguard.cli.console import Console
from oomguard.cli.plan_job import PlannedJob, plan_job
from oomguard.cli.prepare import Prepared
from oomguard.errors import OomguardError, UsageError
from oomguard.estimate.cards import card_named
from oomguard.estimate.constants import CUDA_CONTEXT_BYTES
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import Plan
from oomguard.job.training_job import Device
from oomguard.machine.gpus import Gpu, gpus
from oomguard.predict.forecast import Capacity, Forecast
from oomguard.predict.history import FitIndex
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import HistoryRef, Predicted, Start
from oomguard.units import show_bytes

#: A launch waits for a prediction no longer than this; what is not traced by then is arithmetic.
BUDGET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What is known of a job before its launch, and where to write down how it went.

    `lost` says why the index of fits could not be used, None if it could.
    """

    lessons: HistoryRef | None = None
    planned: PlannedJob | None = None
    start: Start | None = None
    lost: str | None = None

    @property
    def predicted(self) -> tuple[Predicted, ...]:
        """Return the peak that was predicted for each plan."""
        return tuple(
            Predicted(
                plan=plan,
                allocated_bytes=peak.allocated_bytes,
                reserved_bytes=peak.reserved_bytes,
                expected_bytes=peak.expected_bytes,
                method=peak.method,
                terms=peak.terms,
                corrected_by=self._corrected_by,
            )
            for plan, peak in self._estimates.items()
        )

    @property
    def _corrected_by(self) -> dict[str, float]:
        factors = self.planned.ratios.factors if self.planned else {}
        return {term.value: round(factor, 4) for term, factor in factors.items()}

    @property
    def _estimates(self) -> dict[Plan, MemoryEstimate]:
        if self.planned is None:
            return {}
        found = self.planned.forecast
        asked = {found.asked.plan: found.asked.estimate}
        return asked | {r.plan: r.estimate for r in found.rungs if r.plan and r.estimate}


def choose_start(prepared: Prepared, console: Console, *, index: FitIndex) -> StartingPoint:
    """Choose the plan to start from; on any error, start from the requested one."""
    cards = gpus()
    room = _room(prepared, cards)
    if room is None:
        return StartingPoint()
    found = StartingPoint()
    try:
        found = StartingPoint(lessons=_lessons(prepared, room, index))
        if not prepared.limits.grow:
            found = _foreseen(prepared, console, found, room=room, cards=cards, index=index)
    except OomguardError as error:
        console.say(f"no prediction: {error.what}")
    except Exception as error:  # noqa: BLE001  a prediction never stops a launch
        console.say(f"no prediction: {type(error).__name__}: {error}")
    if index.lost is not None:
        console.say(index.lost, "yellow")
    return replace(found, lost=index.lost)


def _foreseen(
    prepared: Prepared,
    console: Console,
    nothing: StartingPoint,
    *,
    room: Capacity,
    cards: tuple[Gpu, ...],
    index: FitIndex,
) -> StartingPoint:
    before = _before(prepared, nothing.lessons, index)
    if before is not None:
        console.say(f"starting {before.reason}")
    if before is not None and not prepared.limits.probe:  # which compares with a prediction
        return replace(nothing, start=before)
    console.say(f"estimating what fits in {show_bytes(room.device_bytes)}")
    planned = plan_job(prepared, room, device=_name(cards), index=index, budget_s=BUDGET_S)
    start = before or start_of(planned.forecast, room)
    asked = show_bytes(planned.forecast.asked.estimate.expected_bytes)
    begins = f"; starting {start.reason}" if start and not before else ""
    console.say(f"estimated peak of the requested config: {asked}{begins}")
    return StartingPoint(lessons=_taught(nothing.lessons, planned), planned=planned, start=start)


def _lessons(prepared: Prepared, room: Capacity, index: FitIndex) -> HistoryRef:
    return HistoryRef(index=str(index.path.absolute()), key=_key(prepared, room))


def _taught(lessons: HistoryRef | None, planned: PlannedJob) -> HistoryRef | None:
    """Add the device, versions and model that measurements belong to."""
    setting = planned.setting
    if lessons is None or setting is None:
        return lessons
    return replace(
        lessons, device=setting.device, versions=dict(setting.versions), model=setting.model
    )


def start_of(found: Forecast, room: Capacity) -> Start | None:
    """Return the first plan whose expected peak fits; None if the requested one does, or none.

    The expected value decides, not the upper bound: a failed attempt costs minutes, an
    unnecessary change costs fidelity.
    """
    if _should_fit(found.asked.estimate, room):
        return None
    steps = []
    for rung in found.rungs:
        if rung.plan is None or rung.step is None or rung.estimate is None:
            continue
        steps.append(rung.step)
        if _should_fit(rung.estimate, room):
            expected = show_bytes(rung.estimate.expected_bytes)
            path = tuple(step.strategy for step in steps)
            return Start(
                spec=AttemptSpec(plan=rung.plan, steps=(*found.prepared, *steps), path=path),
                reason=f"with {rung.strategy}, estimated at {expected}",
            )
    return None


def _should_fit(estimate: MemoryEstimate, room: Capacity) -> bool:
    host = room.host_fits(estimate) is not Fits.NO
    return host and estimate.expected_bytes <= room.device_bytes


def _room(prepared: Prepared, cards: tuple[Gpu, ...]) -> Capacity | None:
    """Return the capacity of a GPU, None for a CPU job; a limit excludes the CUDA context."""
    cap = prepared.limits.gpu_memory_bytes
    if prepared.job.device is not Device.CUDA or not (cards or cap):
        return None
    sizes = [card.total_bytes for card in cards]
    capped = [cap + CUDA_CONTEXT_BYTES] if cap else []
    return Capacity(
        device_bytes=min((*sizes, *capped)), host_bytes=prepared.limits.host_memory_bytes
    )


def _before(prepared: Prepared, lessons: HistoryRef | None, index: FitIndex) -> Start | None:
    """Return the plan with which the same job fit on the same device before."""
    path = index.recall(lessons.key) if lessons else None
    retaken = prepared.ladder.retake(prepared.job, path) if path is not None else None
    if path is None or retaken is None:
        return None
    plan, steps = retaken
    reason = (
        f"with {', '.join(path)}, which fit before"
        if path
        else "with the requested config, which fit before"
    )
    return Start(spec=AttemptSpec(plan=plan, steps=steps, path=path), reason=reason)


def _key(prepared: Prepared, room: Capacity) -> str:
    """Return the key of a job on a device; plan, model, world size and capacity are part of it."""
    job = prepared.job
    model = prepared.adapter.memory_settings(job).model
    parts = [job.framework, model, job.asked, job.world, room, prepared.limits.ladder]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _name(cards: tuple[Gpu, ...]) -> str | None:
    if not cards:
        return None
    try:
        return card_named(cards[0].name).name
    except UsageError:
        return cards[0].name
