"""What `plan` shows and `launch` begins with: the outlook of a job on given GPUs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oomguard.catalogue.litgpt_configs import named
from oomguard.catalogue.lookup import Model, find_model
from oomguard.cli.prepare import Prepared
from oomguard.estimate.correct import UNCORRECTED, Ratios
from oomguard.job.memory_settings import Recipe
from oomguard.job.plan import Plan
from oomguard.predict.forecast import Outlook, Room, outlook
from oomguard.predict.history import FitIndex, Setting
from oomguard.predict.prediction_request import Question
from oomguard.predict.predictor import BUDGET_S, Predictor
from oomguard.predict.trace_client import Tracer, tracer_of
from oomguard.predict.trace_request import traced_family


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job with what it needs, before anything of it was started.

    `setting` is where measurements of it hold, None where the GPU has no name; `ratios` are what
    earlier ones there have corrected.
    """

    prepared: Prepared
    recipe: Recipe
    model: Model
    outlook: Outlook
    room: Room
    setting: Setting | None
    ratios: Ratios
    seconds: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know beside the figures."""
        job = self.prepared.job
        refusal = self.prepared.adapter.refuses(job, job.asked)
        refused = (f"{job.framework} refuses this job as asked: {refusal}",) if refusal else ()
        return (*refused, *self.outlook.notes, *_corrections(self.ratios))

    def question(self, plans: Sequence[Plan]) -> Question:
        """Ask for the peaks of some plans."""
        return _question(self.prepared, self.recipe, self.model, self.room, plans)


def plan_job(
    prepared: Prepared,
    room: Room,
    *,
    device: str | None = None,
    index: FitIndex | None = None,
    budget_s: float = BUDGET_S,
) -> Planned:
    """Predict what was asked and every rung, corrected by what the index knows of the device.

    Raises:
        ConfigError: if nothing is known of the job's model.
    """
    begin, job = time.monotonic(), prepared.job
    recipe = prepared.adapter.recipe(job)
    model = find_model(
        recipe.model, recipe.family, cwd=Path(job.cwd), ask_framework=named(job.python)
    )
    tracer = tracer_of((job.python, sys.executable), traced_family(recipe, model.family).value)
    setting = _setting(device, tracer, prepared, model)
    ratios = index.ratios(setting) if index and setting else UNCORRECTED
    found = outlook(
        job,
        prepared.ladder,
        room,
        lambda plans: _question(prepared, recipe, model, room, plans),
        Predictor(tracer=tracer, budget_s=budget_s, ratios=ratios),
    )
    return Planned(
        prepared=prepared,
        recipe=recipe,
        model=model,
        outlook=found,
        room=room,
        setting=setting,
        ratios=ratios,
        seconds=round(time.monotonic() - begin, 3),
    )


def _setting(
    device: str | None, tracer: Tracer | None, prepared: Prepared, model: Model
) -> Setting | None:
    if device is None:
        return None
    versions = tracer.versions if tracer is not None else {}
    return Setting(
        device=device, versions=versions, framework=prepared.job.framework, model=model.name
    )


def _corrections(ratios: Ratios) -> tuple[str, ...]:
    """Say by what the figures were multiplied, where that is one in a hundred or more."""
    told = {term.value: f"{factor:.2f}" for term, factor in ratios.factors.items()}
    shown = ", ".join(f"{name} x {text}" for name, text in told.items() if text != "1.00")
    runs = f"{ratios.runs} earlier run{'s' if ratios.runs > 1 else ''} on this GPU"
    return (f"corrected by what {runs} took: {shown}",) if shown else ()


def _question(
    prepared: Prepared, recipe: Recipe, model: Model, room: Room, plans: Sequence[Plan]
) -> Question:
    return Question(
        job=prepared.job,
        recipe=recipe,
        model=model,
        plans=plans,
        capacity_bytes=room.device_bytes,
    )
