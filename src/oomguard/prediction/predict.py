"""Predict the peak of plans: the dry run where it can be had, arithmetic where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oomguard.catalogue.lookup import Model
from oomguard.estimate.analytic import SPREAD, Problem, analytic
from oomguard.estimate.host import host_peak
from oomguard.estimate.memory import MemoryEstimate, Method, estimate
from oomguard.job import Job
from oomguard.plan import Plan
from oomguard.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The plans of one job whose peaks are wanted."""

    job: Job
    recipe: Recipe
    model: Model
    plans: Sequence[Plan]
    capacity_bytes: int

    def problem(self, plan: Plan) -> Problem:
        """Put one plan as arithmetic takes it."""
        return Problem(
            model=self.model.architecture,
            plan=plan,
            recipe=self.recipe,
            ranks=self.job.world.size,
            ranks_of_node=self.job.world.per_node,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An estimate for each plan, in order, and what a reader should know of them."""

    estimates: tuple[MemoryEstimate, ...]
    notes: tuple[str, ...] = ()


def predict(question: Question) -> Prediction:
    """Estimate every plan."""
    return Prediction(estimates=tuple(by_arithmetic(question, plan) for plan in question.plans))


def by_arithmetic(question: Question, plan: Plan) -> MemoryEstimate:
    """Estimate one plan by the analytic tier."""
    problem = question.problem(plan)
    return estimate(
        analytic(problem), method=Method.ANALYTIC.value, spread=SPREAD, host=host_peak(problem)
    )
