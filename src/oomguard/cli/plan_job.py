"""What `plan` shows and `launch` begins with: the forecast of a job on given GPUs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oomguard.catalogue.litgpt_configs import named
from oomguard.catalogue.lookup import Model, find_model
from oomguard.cli.prepare import Prepared
from oomguard.estimate.analytic import EstimateInput
from oomguard.estimate.correct import UNCORRECTED, Ratios
from oomguard.estimate.term_descriptions import TrainedPart, explain_terms, trained_part
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.predict.forecast import Capacity, Forecast, PlannedPeak, RungOutlook, forecast
from oomguard.predict.history import FitIndex, HistoryKey
from oomguard.predict.prediction_request import PredictionRequest
from oomguard.predict.predictor import BUDGET_S, Predictor
from oomguard.predict.trace_client import TraceClient, tracer_of
from oomguard.predict.trace_request import traced_family


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """A job with what it needs, before anything of it was started.

    `setting` is where measurements of it hold, None where the GPU has no name; `ratios` are what
    earlier ones there have corrected.
    """

    prepared: Prepared
    recipe: MemorySettings
    model: Model
    forecast: Forecast
    room: Capacity
    setting: HistoryKey | None
    ratios: Ratios
    seconds: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know beside the figures."""
        job = self.prepared.job
        refusal = self.prepared.adapter.refusal(job, job.asked)
        refused = (f"{job.framework} refuses this job as asked: {refusal}",) if refusal else ()
        return (*refused, *self.forecast.notes, *_corrections(self.ratios))

    def trained(self, plan: Plan) -> TrainedPart:
        """Return what a plan trains."""
        return trained_part(self._input(plan))

    def explain(self, peak: PlannedPeak | RungOutlook) -> dict[str, str]:
        """Return the product behind each term of a plan's estimate."""
        if peak.plan is None or peak.estimate is None:
            return {}
        return explain_terms(self._input(peak.plan), peak.estimate, self.ratios)

    def _input(self, plan: Plan) -> EstimateInput:
        request = _question(self.prepared, self.recipe, self.model, self.room, ())
        return request.problem(plan)


def plan_job(
    prepared: Prepared,
    room: Capacity,
    *,
    device: str | None = None,
    index: FitIndex | None = None,
    budget_s: float = BUDGET_S,
) -> PlannedJob:
    """Predict what was asked and every rung, corrected by what the index knows of the device.

    Raises:
        ConfigError: if nothing is known of the job's model.
    """
    begin, job = time.monotonic(), prepared.job
    recipe = prepared.adapter.memory_settings(job)
    model = find_model(
        recipe.model, recipe.family, cwd=Path(job.cwd), ask_framework=named(job.python)
    )
    tracer = tracer_of((job.python, sys.executable), traced_family(recipe, model.family))
    setting = _setting(device, tracer, prepared, model)
    ratios = index.ratios(setting) if index and setting else UNCORRECTED
    found = forecast(
        job,
        prepared.ladder,
        room,
        lambda plans: _question(prepared, recipe, model, room, plans),
        Predictor(tracer=tracer, budget_s=budget_s, ratios=ratios),
    )
    return PlannedJob(
        prepared=prepared,
        recipe=recipe,
        model=model,
        forecast=found,
        room=room,
        setting=setting,
        ratios=ratios,
        seconds=round(time.monotonic() - begin, 3),
    )


def _setting(
    device: str | None, tracer: TraceClient | None, prepared: Prepared, model: Model
) -> HistoryKey | None:
    if device is None:
        return None
    versions = tracer.versions if tracer is not None else {}
    return HistoryKey(
        device=device, versions=versions, framework=prepared.job.framework, model=model.name
    )


def _corrections(ratios: Ratios) -> tuple[str, ...]:
    """Say by what the figures were multiplied, where that is one in a hundred or more."""
    told = {term.value: f"{factor:.2f}" for term, factor in ratios.factors.items()}
    shown = ", ".join(f"{name} x {text}" for name, text in told.items() if text != "1.00")
    runs = f"{ratios.runs} earlier run{'s' if ratios.runs > 1 else ''} on this GPU"
    return (f"corrected by what {runs} took: {shown}",) if shown else ()


def _question(
    prepared: Prepared, recipe: MemorySettings, model: Model, room: Capacity, plans: Sequence[Plan]
) -> PredictionRequest:
    return PredictionRequest(
        job=prepared.job,
        recipe=recipe,
        model=model,
        plans=plans,
        capacity_bytes=room.device_bytes,
    )
