"""Predict many plans of a job, in many capacities, after tracing its requested plan once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oomguard.estimate import combine
from oomguard.estimate.correct import UNCORRECTED, Ratios
from oomguard.job.plan import Plan
from oomguard.predict import trace_request
from oomguard.predict.prediction_request import Prediction, PredictionRequest
from oomguard.predict.predictor import (
    Predictor,
    Traces,
    assumed,
    cross_check,
    estimated,
    no_tracer,
    replay_capacity,
)
from oomguard.predict.trace_client import NoTrace, at_capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPlan:
    """A plan whose step was traced, and the step as the tracer was sent it."""

    plan: Plan
    step: Mapping[str, object]
    traced: combine.Traced


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Predicts any plan of a job, in any capacity, from the traces that were made of it.

    It traces nothing itself: other plans are scaled. `versions` is None without a tracer;
    `reasons` says which traces failed.
    """

    traced: tuple[TracedPlan, ...] = ()
    ratios: Ratios = UNCORRECTED
    versions: Mapping[str, str] | None = None
    reasons: tuple[str, ...] = ()

    def __call__(self, question: PredictionRequest) -> Prediction:
        """Estimate every plan."""
        traces = self._traces(question)
        estimates = tuple(estimated(question, p, traces, self.ratios) for p in question.plans)
        untraced = (no_tracer(question),) if self.versions is None else ()
        checks = cross_check(question, {p: traces[p] for p in question.plans if p in traces})
        notes = (*untraced, *checks, *self.reasons, *assumed(question))
        return Prediction(estimates=estimates, notes=notes)

    def _traces(self, question: PredictionRequest) -> Traces:
        """Return the traces that hold for a question: of plans whose step is the same there."""
        traces: dict[Plan, combine.Traced] = {}
        if not self.traced:
            return traces
        capacity_bytes = replay_capacity(question)
        for plan in dict.fromkeys((*(one.plan for one in self.traced), *question.plans)):
            step = trace_request.variant(question, plan, self.versions or {})
            known = next((one.traced for one in self.traced if one.step == step), None)
            if known is not None:
                traces[plan] = at_capacity(known, capacity_bytes)
        return traces


def trace_requested(predictor: Predictor, questions: Sequence[PredictionRequest]) -> Replay:
    """Trace the first plan of each question, for predictions of many plans and capacities."""
    if predictor.tracer is None:
        return Replay(ratios=predictor.ratios)
    versions = predictor.tracer.versions
    wanted: list[tuple[PredictionRequest, Mapping[str, object]]] = []
    for question in questions:
        step = trace_request.variant(question, question.plans[0], versions)
        if step is not None and all(step != known for _, known in wanted):
            wanted.append((question, step))
    traced: list[TracedPlan] = []
    reasons: dict[str, None] = {}
    answers = predictor.trace(wanted, until=predictor.clock() + predictor.budget_s)
    for (question, sent), (_, answer) in zip(wanted, answers, strict=True):
        if isinstance(answer, NoTrace):
            reasons[f"not traced: {answer}"] = None
        else:
            traced.append(TracedPlan(plan=question.plans[0], step=sent, traced=answer))
    return Replay(
        traced=tuple(traced), ratios=predictor.ratios, versions=versions, reasons=tuple(reasons)
    )
