"""The forecast of a job on given GPUs, which `plan` prints and `launch` starts from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oomguard.catalogue.checkpoint_formats import stored_format
from oomguard.catalogue.litgpt_configs import named
from oomguard.catalogue.lookup import Model, find_model
from oomguard.cli.prepare import Prepared
from oomguard.errors import ConfigError, UsageError
from oomguard.estimate.colocated import with_engine
from oomguard.estimate.correct import UNCORRECTED, Ratios
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.estimate.term_descriptions import TrainedPart, explain_terms, trained_part
from oomguard.job.memory_settings import FurtherModel, MemorySettings
from oomguard.job.plan import Plan
from oomguard.job.training_job import Device, Job
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled
from oomguard.predict.forecast import (
    Capacity,
    Fit,
    Forecast,
    PlannedPeak,
    forecast,
    missing_from,
    planned_peak,
)
from oomguard.predict.history import FitIndex, HistoryKey
from oomguard.predict.left_out import in_version, left_out
from oomguard.predict.prediction_request import Prediction, PredictionRequest
from oomguard.predict.predictor import BUDGET_S, Predictor
from oomguard.predict.trace_client import tracer_of
from oomguard.predict.trace_request import also_asked, traced_with

Predict = Callable[[PredictionRequest], Prediction]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativePeak:
    """A change after which the framework accepts the requested config, and what that needs."""

    change: str
    estimate: MemoryEstimate
    fits: Fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """The framework's own message about the requested config, and the ways around it."""

    message: str
    alternatives: tuple[AlternativePeak, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """A job with its forecast; nothing was started.

    `history_key` is where measurements of it are stored, None if the GPU's name is not known.
    `ratios` are the corrections learned from earlier measurements there.
    """

    prepared: Prepared
    request: PredictionRequest
    forecast: Forecast
    method: TrainingMethod | None
    unmodelled: tuple[Unmodelled, ...]
    rejected: Rejection | None
    capacity: Capacity
    history_key: HistoryKey | None
    ratios: Ratios
    predictor: Predictor
    seconds: float

    @property
    def model(self) -> Model:
        """Return the model that is trained."""
        return self.request.model

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what qualifies the figures: refusals, assumptions and corrections."""
        job, ratios, rejected = self.prepared.job, self.ratios, self.rejected
        refused = (
            (f"{job.framework} rejects the requested config: {rejected.message}",)
            if rejected
            else ()
        )
        named = {one.key for one in self.unmodelled}
        unknown = [key for key in self.prepared.adapter.unknown(job) if key not in named]
        title = self.prepared.adapter.title
        source = f"{title}'s settings and losses were read from its source: no job of it was run"
        unrun = () if self.prepared.adapter.is_run else (source,)
        ignored = (f"{title} has no setting {', '.join(unknown)}",) if unknown else ()
        factors = {term.value: f"{factor:.2f}" for term, factor in ratios.factors.items()}
        shown = ", ".join(f"{name} x {text}" for name, text in factors.items() if text != "1.00")
        runs = f"{ratios.runs} earlier run{'s' if ratios.runs > 1 else ''} on this GPU"
        corrected = (f"corrected by measurements of {runs}: {shown}",) if shown else ()
        taken = self.model.taken_for
        alike = (f"{self.model.name} is not in the catalogue: taken for {taken}",) if taken else ()
        read = self.prepared.adapter.notes(job)
        return (*refused, *alike, *ignored, *read, *self.forecast.notes, *corrected, *unrun)

    @property
    def subject(self) -> dict[str, object]:
        """Return what the answers of `--max` and `--sweep` are about, as `--json` prints it."""
        return {
            "framework": self.prepared.job.framework,
            "model": self.model.name,
            "capacity_bytes": self.capacity.device_bytes,
            "unmodelled": self.unmodelled,
            "rejected": self.rejected,
        }

    def trained(self, plan: Plan) -> TrainedPart:
        """Return what a plan trains."""
        return trained_part(self.request.problem(plan))

    def explain(self, peak: PlannedPeak | Fit) -> dict[str, str]:
        """Return the product behind each term of a plan's estimate."""
        return explain_terms(self.request.problem(peak.plan), peak.estimate, self.ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """A job on given GPUs, ready to be predicted.

    `unmodelled` are all effects that an estimate may leave out; `history_key` as in `PlannedJob`.
    """

    prepared: Prepared
    request: PredictionRequest
    capacity: Capacity
    method: TrainingMethod | None
    unmodelled: tuple[Unmodelled, ...]
    history_key: HistoryKey | None
    predictor: Predictor


def on_card(prepared: Prepared, *, bfloat16: bool = True, hopper: bool = False) -> Prepared:
    """Return the job with what its GPU can compute in.

    Raises:
        UsageError: if it runs on the CPU.
    """
    if prepared.job.device is Device.CPU:
        raise UsageError(
            "this job runs on the CPU, so there is no GPU memory to plan",
            next_step="Remove use_cpu from its settings to plan it for a GPU.",
        )
    return replace(prepared, job=replace(prepared.job, bfloat16=bfloat16, hopper=hopper))


def plan_question(
    prepared: Prepared,
    capacity: Capacity,
    *,
    device: str | None = None,
    index: FitIndex | None = None,
    budget_s: float = BUDGET_S,
    like: PlanQuestion | None = None,
) -> PlanQuestion:
    """Read what a prediction needs; with the tracer of a question about the same job, if any.

    Raises:
        ConfigError: if the job's model is not known.
    """
    request, uncounted = _request(prepared, capacity)
    job, model = request.job, request.model
    if like is None:
        needed = traced_with(request.recipe, model.family)
        tracer = tracer_of((job.python, sys.executable), needed, also_asked(request.recipe))
    else:
        tracer = like.predictor.tracer
    versions = tracer.versions if tracer else {}
    request = replace(request, recipe=in_version(request.recipe, model.family, versions))
    key = history_key(job, model, device, versions) if device else None
    ratios = index.ratios(key) if index and key else UNCORRECTED
    method = prepared.adapter.training_method(job)
    missing = left_out(job, method, model, request.recipe, versions)
    return PlanQuestion(
        prepared=replace(prepared, job=job),
        request=request,
        capacity=capacity,
        method=method,
        unmodelled=(*prepared.adapter.unmodelled(job), *missing, *uncounted),
        history_key=key,
        predictor=Predictor(tracer=tracer, budget_s=budget_s, ratios=ratios),
    )


def plan_job(
    prepared: Prepared,
    capacity: Capacity,
    *,
    device: str | None = None,
    index: FitIndex | None = None,
    budget_s: float = BUDGET_S,
) -> PlannedJob:
    """Predict the requested config and each strategy, corrected by the history of the GPU.

    Raises:
        ConfigError: if the job's model is not known.
    """
    start = time.monotonic()
    question = plan_question(prepared, capacity, device=device, index=index, budget_s=budget_s)
    predictor, unmodelled = question.predictor, question.unmodelled
    found = forecast(question.request, prepared.ladder, capacity, predictor, unmodelled=unmodelled)
    return planned(question, found, predictor, since=start)


def planned(
    question: PlanQuestion, found: Forecast, predict: Predict, *, since: float
) -> PlannedJob:
    """Return a forecast with what is known of its job; not for sure where the framework refuses.

    `since` is when the question was asked, on the monotonic clock.
    """
    rejected = _rejection(question, predict)
    if rejected and found.asked.fits is Fits.YES:
        found = replace(found, asked=replace(found.asked, fits=Fits.UNSURE))
    return PlannedJob(
        prepared=question.prepared,
        request=question.request,
        forecast=found,
        method=question.method,
        unmodelled=missing_from(found.asked.estimate, question.unmodelled),
        rejected=rejected,
        capacity=question.capacity,
        history_key=question.history_key,
        ratios=question.predictor.ratios,
        predictor=question.predictor,
        seconds=round(time.monotonic() - since, 3),
    )


def _request(
    prepared: Prepared, capacity: Capacity
) -> tuple[PredictionRequest, tuple[Unmodelled, ...]]:
    """Return what is asked, and the models of the job whose size is not known."""
    job, settings = prepared.job, prepared.adapter.memory_settings(prepared.job)
    if not settings.model:
        raise ConfigError(
            "the job names no model, so its size is unknown",
            next_step=f"Set {prepared.adapter.model_key}: the default of a script is not visible.",
        )
    model = _find(settings.model, settings, job)
    further = settings.objective.further if settings.objective else ()
    sizes = {one: _size(one, settings, job) for one in further}
    numbers = [
        sum(size or 0 for one, size in sizes.items() if one.is_trained is trained)
        for trained in (False, True)
    ]
    uncounted = (
        Unmodelled(
            key=one.key,
            effect="the size of this further model is not known: it is not counted",
            direction=Direction.MORE,
        )
        for one, size in sizes.items()
        if size is None
    )
    if model.type and job.model_type is None:  # known to the hub alone
        job = prepared.adapter.of_model(job, model.type, stored_format(model))
    job = with_engine(job, model.architecture, capacity.device_bytes)
    request = PredictionRequest(
        job=job,
        recipe=settings,
        model=model,
        plans=(),
        capacity_bytes=capacity.device_bytes,
        further=numbers[0],
        further_trained=numbers[1],
    )
    return request, tuple(dict.fromkeys(uncounted))


def _find(name: str, settings: MemorySettings, job: Job) -> Model:
    return find_model(name, settings.family, cwd=Path(job.cwd), ask_framework=named(job.python))


def _size(one: FurtherModel, settings: MemorySettings, job: Job) -> int | None:
    """Return how many numbers a further model has, None if that is not known."""
    if not one.model:
        return None
    try:
        return _find(one.model, settings, job).architecture.parameters
    except ConfigError:
        return None


def history_key(job: Job, model: Model, device: str, versions: Mapping[str, str]) -> HistoryKey:
    """Return where measurements of a job on a GPU of this name are stored."""
    return HistoryKey(device=device, versions=versions, framework=job.framework, model=model.name)


def _rejection(question: PlanQuestion, predict: Predict) -> Rejection | None:
    """Return what the framework says against the requested config, None if it accepts it."""
    adapter, job = question.prepared.adapter, question.prepared.job
    message = adapter.refusal(job, job.asked)
    if message is None:
        return None
    peaks = []
    for one in adapter.alternatives(job):
        changed = replace(
            question.request,
            job=one.job,
            recipe=adapter.memory_settings(one.job),
            plans=(one.job.asked,),
        )
        predicted = predict(changed).estimates[0]
        peak = planned_peak(one.job.asked, predicted, question.capacity, question.unmodelled)
        peaks.append(AlternativePeak(change=one.change, estimate=peak.estimate, fits=peak.fits))
    return Rejection(message=message, alternatives=tuple(peaks))
