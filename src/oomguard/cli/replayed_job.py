"""A job whose requested plan was traced once, for questions about many plans of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.cli.plan_job import PlannedJob, PlanQuestion, on_card, plan_question, planned
from oomguard.cli.plan_target import Target
from oomguard.cli.prepare import Prepared
from oomguard.cli.spelled_changes import settings_of
from oomguard.errors import UsageError
from oomguard.job.plan import Plan, Tuning
from oomguard.predict.forecast import Capacity, PlannedPeak, forecast, planned_peak
from oomguard.predict.history import FitIndex
from oomguard.predict.replay import Replay, trace_requested

#: Fields of a plan that are a size, as `--max` and `--sweep` name them.
SIZES = ("micro_batch", "sequence_length", "lora_rank", "image_pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedJob:
    """A job on given GPUs, and predictions of any plan of it that trace nothing more.

    `asked_at` and `traced_at` are times on the monotonic clock.
    """

    question: PlanQuestion
    replay: Replay
    asked_at: float
    traced_at: float

    @property
    def asked(self) -> Plan:
        """Return the plan as the user wrote it."""
        return self.question.request.job.asked

    @property
    def answer_seconds(self) -> float:
        """Return how long the answer took after the trace."""
        return round(time.monotonic() - self.traced_at, 3)

    def planned(self) -> PlannedJob:
        """Return the forecast of the whole ladder."""
        question = self.question
        found = forecast(
            question.request,
            question.prepared.ladder,
            question.capacity,
            self.replay,
            unmodelled=question.unmodelled,
        )
        return planned(question, found, self.replay, since=self.asked_at)

    def with_values(self, values: Mapping[str, int]) -> Plan:
        """Return the requested plan with other values of sizes, and what goes with them."""
        job = self.question.request.job
        plan = replace(job.asked, **values)  # type: ignore[arg-type]  # a size is an int
        return self.question.prepared.adapter.normalize(job, plan)

    def refusal(self, plan: Plan) -> str | None:
        """Return the framework's message if it would refuse a plan."""
        return self.question.prepared.adapter.refusal(self.question.request.job, plan)

    def settings(self, plan: Plan) -> list[str]:
        """Return the settings of the framework that a plan it takes gives new values."""
        return settings_of(plan, self.question.prepared.adapter, self.question.request.job)

    def peak(self, plan: Plan) -> PlannedPeak:
        """Return the peak of a plan, with what is changed before any attempt."""
        question = self.question
        job = replace(question.request.job, asked=plan)
        first, _ = question.prepared.ladder.prepare(job)
        (estimate,) = self.replay(replace(question.request, plans=(first,))).estimates
        return planned_peak(plan, estimate, question.capacity, question.unmodelled)


def replayed_job(
    prepared: Prepared,
    target: Target,
    *,
    host_bytes: int | None = None,
    index: FitIndex | None = None,
) -> ReplayedJob:
    """Trace the requested plan of a job for a GPU.

    Raises:
        UsageError: for a job that runs on the CPU, or whose model is not known.
    """
    began = time.monotonic()
    question = plan_question(
        on_card(prepared, bfloat16=target.bfloat16, hopper=target.hopper),
        Capacity(device_bytes=target.device_bytes, host_bytes=host_bytes),
        device=target.name,
        index=index,
    )
    first, _ = prepared.ladder.prepare(question.request.job)
    replay = trace_requested(question.predictor, [replace(question.request, plans=(first,))])
    return ReplayedJob(question=question, replay=replay, asked_at=began, traced_at=time.monotonic())


def requested_size(plan: Plan, field: str) -> int:
    """Return the value of a size in a plan.

    Raises:
        UsageError: if the job has no such size.
    """
    value = getattr(plan, field)
    has = [
        name
        for name in SIZES
        if getattr(plan, name) is not None and (name != "lora_rank" or plan.tuning is Tuning.LORA)
    ]
    if field not in has:
        raise UsageError(
            f"this job has no {field}, or it is not known",
            next_step=f"It has {', '.join(has)}.",
        )
    return int(value)
