"""Where a launch begins: at the rung that worked before, else at the first that should fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from oomguard.cli.account import Account
from oomguard.cli.planning import Planned, plan_job
from oomguard.cli.request import Prepared
from oomguard.devices import Gpu, gpus
from oomguard.errors import OomguardError, UsageError
from oomguard.estimate.cards import card_named
from oomguard.estimate.constants import CUDA_CONTEXT_BYTES
from oomguard.estimate.memory import COUNTED, Fits, MemoryEstimate
from oomguard.events import Predicted, Start, Status
from oomguard.fits import FitIndex, Measured
from oomguard.job import Device
from oomguard.plan import Plan
from oomguard.prediction.outlook import Outlook, Room
from oomguard.record import Attempt, RunRecord
from oomguard.units import show_bytes

#: A launch waits for a prediction no longer than this; what is not traced by then is arithmetic.
BUDGET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What is known of a job before its launch, and where to write down how it went."""

    prepared: Prepared
    index: FitIndex
    room: Room | None
    planned: Planned | None = None
    start: Start | None = None

    @property
    def predicted(self) -> tuple[Predicted, ...]:
        """Give the peak that was predicted for each plan."""
        return tuple(
            Predicted(
                plan=plan,
                allocated_bytes=peak.allocated_bytes,
                reserved_bytes=peak.reserved_bytes,
                expected_bytes=peak.expected_bytes,
                method=peak.method,
            )
            for plan, peak in self._estimates.items()
        )

    def learn(self, record: RunRecord) -> None:
        """Keep what was measured, and the rungs that led to a fit."""
        if self.room is None:
            return
        for attempt in record.attempts:
            self._measure(attempt)
        if record.status is Status.FIT:
            self.index.remember(_key(self.prepared, self.room), record.last.path)

    def _measure(self, attempt: Attempt) -> None:
        """Compare an attempt that reached a step with what was predicted for its plan."""
        planned, allocated = self.planned, attempt.device_peak_bytes
        reserved, estimate = attempt.reserved_peak_bytes, self._estimates.get(attempt.plan)
        known = planned is not None and planned.setting is not None and estimate is not None
        if not known or not allocated or not reserved or attempt.steps_done < 1:
            return
        if planned is None or planned.setting is None or estimate is None:
            return
        self.index.learn(
            planned.setting,
            Measured(
                counted_bytes=sum(
                    size for term, size in estimate.terms.items() if term in _COUNTED_NAMES
                ),
                predicted_allocated_bytes=estimate.allocated_bytes,
                predicted_reserved_bytes=estimate.reserved_bytes,
                allocated_bytes=allocated,
                reserved_bytes=reserved,
            ),
        )

    @property
    def _estimates(self) -> dict[Plan, MemoryEstimate]:
        if self.planned is None:
            return {}
        found = self.planned.outlook
        asked = {found.asked.plan: found.asked.estimate}
        return asked | {r.plan: r.estimate for r in found.rungs if r.plan and r.estimate}


_COUNTED_NAMES = {term.value for term in COUNTED}


def foresee(prepared: Prepared, account: Account, *, index: FitIndex) -> Foresight:
    """Say where to begin; whatever goes wrong here, the launch begins at the top."""
    cards = gpus()
    room = _room(prepared, cards)
    nothing = Foresight(prepared=prepared, index=index, room=room)
    if room is None or prepared.limits.grow:
        return nothing
    try:
        before = _before(prepared, room, index)
        if before is not None:
            account.say(f"begins {before.reason}")
        if before is not None and not prepared.limits.probe:  # which compares with a prediction
            return Foresight(prepared=prepared, index=index, room=room, start=before)
        account.say(f"predicting what fits into {show_bytes(room.device_bytes)}")
        planned = plan_job(prepared, room, device=_name(cards), index=index, budget_s=BUDGET_S)
    except OomguardError as error:
        account.say(f"no prediction: {error.what}")
        return nothing
    except Exception as error:  # noqa: BLE001  a prediction never stops a launch
        account.say(f"no prediction: {type(error).__name__}: {error}")
        return nothing
    start = before or start_of(planned.outlook, room)
    asked = show_bytes(planned.outlook.asked.estimate.expected_bytes)
    begins = f"; begins {start.reason}" if start and not before else ""
    account.say(f"predicted: {asked} as asked{begins}")
    return Foresight(prepared=prepared, index=index, room=room, planned=planned, start=start)


def start_of(found: Outlook, room: Room) -> Start | None:
    """Give the first rung whose expected peak fits; None for what was asked, or where none does.

    Expected, and not the high end of the interval: a run that fails costs minutes, a rung too
    many costs fidelity.
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
            return Start(
                plan=rung.plan,
                steps=(*found.prepared, *steps),
                path=tuple(step.strategy for step in steps),
                reason=f"at {rung.strategy}, which should take {expected}",
            )
    return None


def _should_fit(estimate: MemoryEstimate, room: Room) -> bool:
    host = room.host_fits(estimate) is not Fits.NO
    return host and estimate.expected_bytes <= room.device_bytes


def _room(prepared: Prepared, cards: tuple[Gpu, ...]) -> Room | None:
    """Give what a GPU has, None on a CPU job; a cap leaves the CUDA context out."""
    cap = prepared.limits.gpu_memory_bytes
    if prepared.job.device is not Device.CUDA or not (cards or cap):
        return None
    sizes = [card.total_bytes for card in cards]
    capped = [cap + CUDA_CONTEXT_BYTES] if cap else []
    return Room(device_bytes=min((*sizes, *capped)), host_bytes=prepared.limits.host_memory_bytes)


def _before(prepared: Prepared, room: Room, index: FitIndex) -> Start | None:
    """Give the rungs that led the same job on the same device to its end before."""
    path = index.recall(_key(prepared, room))
    retaken = prepared.ladder.retake(prepared.job, path) if path is not None else None
    if path is None or retaken is None:
        return None
    plan, steps = retaken
    reason = f"with {', '.join(path)}, as it fitted before" if path else "as it fitted before"
    return Start(plan=plan, steps=steps, path=path, reason=reason)


def _key(prepared: Prepared, room: Room) -> str:
    """Name a job on a device: another plan, model, world or capacity is another job."""
    job = prepared.job
    model = prepared.adapter.recipe(job).model
    parts = [job.framework, model, job.asked, job.world, room, prepared.limits.ladder]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _name(cards: tuple[Gpu, ...]) -> str | None:
    if not cards:
        return None
    try:
        return card_named(cards[0].name).name
    except UsageError:
        return cards[0].name
