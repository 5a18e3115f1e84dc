"""What a probe is asked for, and what comes after it. Pure.

A probe runs the job's own first optimizer steps on batches as long as its data's longest, apart
from the run: the next plan is launched for real only after its probe has passed.
"""

from __future__ import annotations

from oomguard.evidence.verdict import Kind
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.run.attempt import Probe
from oomguard.run.state import Attempt

#: The optimizer's state exists only after the first: the second step has everything in memory.
STEPS = 2
#: Seconds that a probe may say nothing after its steps, before what is left of it is ended.
LINGERS_S = 30.0


def probe_of(job: Job, plan: Plan) -> Probe:
    """Return how long the batches of a plan can become: to its limit, or to the longest sample.

    As in a prediction, only a count by the model's own tokenizer is believed; what media take
    depends on more than the text.
    """
    limit, lengths = plan.sequence_length, job.lengths
    if lengths is None or lengths.filled or job.multimodal or not lengths.is_exact:
        return Probe(steps=STEPS, tokens=limit)
    if limit is None:  # and no template either, which no model may have room for
        return Probe(steps=STEPS, tokens=lengths.longest)
    return Probe(steps=STEPS, tokens=min(limit, lengths.at_most or limit))


def has_passed(attempt: Attempt) -> bool:
    """Return whether a probe that has ended showed that its plan fits."""
    verdict = attempt.verdict
    if attempt.spec.probe is None or verdict is None or verdict.kind.is_memory:
        return False
    ended_early = verdict.kind is Kind.OK and attempt.steps_done > 0
    return attempt.probed or ended_early


def outlives_its_steps(attempt: Attempt, now: float) -> bool:
    """Return whether a probe has taken its steps and does not end."""
    heard_t = attempt.heard_t
    return attempt.probed and heard_t is not None and now - heard_t >= LINGERS_S
