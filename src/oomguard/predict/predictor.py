"""Predict the peak of plans: traced where it can be, by arithmetic where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from oomguard.estimate import analytic, combine
from oomguard.estimate.correct import UNCORRECTED, Ratios, corrected
from oomguard.estimate.fused_lora import fused_lora
from oomguard.estimate.host import host_peak
from oomguard.estimate.memory import Fits, MemoryEstimate, Method, Spread, Term, estimate
from oomguard.job.plan import LossKernel, Plan
from oomguard.predict import trace_request
from oomguard.predict.prediction_request import Prediction, PredictionRequest, cuda_overhead
from oomguard.predict.trace_client import NoTrace, TraceClient
from oomguard.units import show_bytes

#: Seconds for all the traces of a question; what is not traced by then is scaled.
BUDGET_S = 90.0
#: How often the plans that decide which is the first to fit are traced anew.
ROUNDS = 4
_CHILDREN = 2

Traces = Mapping[Plan, combine.Traced]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Predicts with a Python that traces, or (None) by arithmetic alone."""

    tracer: TraceClient | None = None
    ratios: Ratios = UNCORRECTED
    budget_s: float = BUDGET_S
    clock: Callable[[], float] = time.monotonic

    def __call__(self, question: PredictionRequest) -> Prediction:
        """Estimate every plan; a trace that fails never fails the prediction.

        Traced are the asked plan, and round by round those that decide which is the first to fit.
        """
        if self.tracer is None:
            estimates = tuple(estimated(question, p, {}, self.ratios) for p in question.plans)
            return Prediction(estimates=estimates, notes=(no_tracer(question), *assumed(question)))
        versions = self.tracer.versions
        steps = {plan: trace_request.variant(question, plan, versions) for plan in question.plans}
        traces: dict[Plan, combine.Traced] = {}
        tried: list[object] = []
        reasons: dict[str, None] = {}
        end = self.clock() + self.budget_s
        for _ in range(ROUNDS):
            wanted = self._deciding(question, traces, _one_of_each(steps, tried))
            if not wanted or self.clock() >= end:
                break
            tried += [steps[plan] for plan in wanted]
            asked = [(question, steps[plan] or {}) for plan in wanted]
            for step, answer in self.trace(asked, until=end):
                if isinstance(answer, NoTrace):
                    reasons[f"not traced: {answer}"] = None
                else:
                    traces |= {plan: answer for plan in steps if steps[plan] == step}
        estimates = tuple(estimated(question, p, traces, self.ratios) for p in question.plans)
        notes = (*cross_check(question, traces), *reasons, *assumed(question))
        return Prediction(estimates=estimates, notes=notes)

    def trace(
        self, steps: Sequence[tuple[PredictionRequest, Mapping[str, object]]], *, until: float
    ) -> Iterator[tuple[Mapping[str, object], combine.Traced | NoTrace]]:
        """Trace each step of a question in a child of its own, until a time on the clock."""
        tracer = self.tracer
        if tracer is None:
            return
        with ThreadPoolExecutor(_CHILDREN) as pool:
            answers = pool.map(
                lambda asked: tracer.trace(
                    trace_request.model(asked[0]),
                    asked[1],
                    capacity_bytes=replay_capacity(asked[0]),
                    timeout_s=max(0.0, until - self.clock()),
                ),
                steps,
            )
            for (_, step), answer in zip(steps, answers, strict=True):
                yield step, answer

    def _deciding(
        self, question: PredictionRequest, traces: Traces, open_: list[Plan]
    ) -> list[Plan]:
        """Return what to trace next: the requested plan, the first that fits, one that may."""
        steps: list[Plan] = []
        if question.plans and not traces and question.plans[0] in open_:
            steps.append(question.plans[0])
        for plan in question.plans:
            fits = estimated(question, plan, traces, self.ratios).fits(question.capacity_bytes)
            if fits is not Fits.NO and plan in open_ and plan not in steps:
                steps.append(plan)
            if fits is Fits.YES:
                break
        return steps[:_CHILDREN]


def replay_capacity(question: PredictionRequest) -> int:
    """Return the bytes that a replay must stay within on the GPU of a question."""
    return combine.replay_capacity(
        question.capacity_bytes, cuda_overhead(question.job).context_bytes
    )


def _one_of_each(
    steps: Mapping[Plan, Mapping[str, object] | None], tried: Sequence[object]
) -> list[Plan]:
    """Return one plan for each step that was not traced yet: several plans may run the same."""
    seen = list(tried)
    found = []
    for plan, step in steps.items():
        if step not in seen:
            seen.append(step)
            found.append(plan)
    return found


def by_arithmetic(question: PredictionRequest, plan: Plan) -> MemoryEstimate:
    """Estimate one plan by the analytic tier."""
    return estimated(question, plan, {}, UNCORRECTED)


def estimated(
    question: PredictionRequest, plan: Plan, traces: Traces, ratios: Ratios
) -> MemoryEstimate:
    """Estimate one plan; of LoRA kernels the interval also covers PEFT's layers in their place."""
    found, layers = _estimated_once(question, plan, traces, ratios), question.without_kernels
    if layers is question:
        return found
    return combine.covering(found, _estimated_once(layers, plan, traces, ratios))


def _estimated_once(
    question: PredictionRequest, plan: Plan, traces: Traces, ratios: Ratios
) -> MemoryEstimate:
    """Estimate one plan by its own trace, else scaled by the nearest, else by arithmetic."""
    problem, traced, as_traced = question.problem(plan), traces.get(plan), question.without_kernels
    if traced is not None and as_traced is question:
        terms = combine.traced_terms(traced, problem)
        found = _make_estimate(
            question, plan, corrected(terms, ratios), traced.method, combine.SPREAD
        )
        if combine.disagreement(terms, problem) is not None:
            return combine.covering(found, _computed(question, plan, ratios))
        does = traced.fits_replay is True and not combine.is_sharded(plan)
        return combine.clip_to_capacity(found, question.capacity_bytes) if does else found
    if not traces:
        return _computed(question, plan, ratios)
    nearest = min(traces, key=lambda other: (other != plan, _distance(plan, other)))
    reference = as_traced.problem(nearest)
    known = combine.traced_terms(traces[nearest], reference)
    terms = corrected(combine.scaled(problem, reference, known), ratios)
    found = _make_estimate(question, plan, terms, Method.SCALED.value, combine.SCALED_SPREAD)
    if combine.disagreement(known, reference) is not None:
        return combine.covering(found, _computed(question, plan, ratios))
    return found


def _computed(question: PredictionRequest, plan: Plan, ratios: Ratios) -> MemoryEstimate:
    """Estimate by arithmetic; the interval covers the loss of earlier versions that may run."""
    terms = corrected(analytic.analytic(question.problem(plan)), ratios)
    found = _make_estimate(question, plan, terms, Method.ANALYTIC.value, analytic.SPREAD)
    objective = question.recipe.objective
    if objective is None or objective.earlier is None:
        return found
    recipe = replace(question.recipe, objective=objective.earlier)
    whole = replace(plan, loss_kernel=LossKernel.EAGER)
    return combine.covering(found, _computed(replace(question, recipe=recipe), whole, ratios))


def _distance(plan: Plan, other: Plan) -> int:
    """Count in how many ways two plans' steps differ."""
    fields = ("checkpointing", "quantization", "loss_kernel", "tuning", "precision", "frozen")
    apart = sum(int(getattr(plan, field) != getattr(other, field)) for field in fields)
    tokens = (plan.micro_batch, plan.sequence_length), (other.micro_batch, other.sequence_length)
    return 2 * apart + (tokens[0] != tokens[1])


def no_tracer(question: PredictionRequest) -> str:
    """Return that nothing is traced, and what to install for it."""
    extra = trace_request.traced_family(question.recipe, question.model.family).extra
    return (
        "estimates are analytic, computed from the model's shape; to trace a training step "
        f"instead: pip install 'oomguard[{extra}]'"
    )


def _make_estimate(
    question: PredictionRequest, plan: Plan, terms: Mapping[Term, int], method: str, spread: Spread
) -> MemoryEstimate:
    host = host_peak(question.problem(plan))
    return estimate(terms, method=method, spread=spread, host=host)


def assumed(question: PredictionRequest) -> list[str]:
    """Return what the estimates assume: of the loss, the adapter's kernels, the batches' length."""
    return [*_version(question), *_kernels(question), *_length(question)]


def _kernels(question: PredictionRequest) -> list[str]:
    lora, model = question.recipe.lora, question.model.architecture
    fused = any(fused_lora(model, plan, lora).parts for plan in question.plans)
    if lora is None or lora.fused is None or not fused:
        return []
    package, since = lora.fused.since
    first = ".".join(map(str, since))
    note = (
        f"{package}'s LoRA kernels (from {first} on) are assumed; where they do not run, PEFT's "
        "layers keep more: the interval covers them"
    )
    return [note]


def _version(question: PredictionRequest) -> list[str]:
    objective = question.recipe.objective
    if objective is None or objective.earlier is None or objective.since is None:
        return []
    package, since = objective.since
    first = ".".join(map(str, since))
    return [
        f"the version of {package} is not known: whole logits, as before {first}, are covered too"
    ]


def _length(question: PredictionRequest) -> list[str]:
    asked = next(iter(question.plans), None)
    if asked is None:
        return []
    limit = asked.sequence_length
    longest = question.batched(asked).sequence_length
    completion = asked.completion_length
    if completion is not None and longest is not None:
        known = "the longest prompt" if question.job.lengths else "an assumed prompt"
        note = f"every row is assumed to be {known} of {longest - completion} tokens and "
        return [note + f"a completion of {completion}"]
    if longest != limit:
        return [f"batches are assumed to be as long as the longest sample: {longest} tokens"]
    if question.recipe.packing or question.recipe.padded:
        return []
    if limit is None:
        tokens = analytic.untruncated(question.model.architecture)
        return [f"the sequence length is not known: {tokens} tokens are assumed"]
    return [f"every batch is assumed to be as long as the limit of {limit} tokens"]


def cross_check(question: PredictionRequest, traces: Traces) -> list[str]:
    """Return where a trace and the arithmetic differ more than they should."""
    notes = []
    for plan, traced in traces.items():
        problem = question.without_kernels.problem(plan)
        tokens = problem.step.length
        found = combine.disagreement(combine.traced_terms(traced, problem), problem)
        if found is not None:
            notes.append(
                f"trace and analytic estimate differ by a factor of {found.ratio:.2f} at micro "
                f"batch {plan.micro_batch}, {tokens} tokens (expected within "
                f"{combine.DISAGREEMENT}), most in {found.term.value}: "
                f"{show_bytes(found.traced_bytes)} traced, {show_bytes(found.computed_bytes)} "
                "computed; the trace is shown, and the interval covers both"
            )
    return notes
