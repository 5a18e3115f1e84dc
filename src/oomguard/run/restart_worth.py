"""Decide whether a restart with a cheaper change beats going on in smaller parts. Pure.

Steps in parts cost nothing to begin with, but each of them may be slower than it would be whole. A
change that keeps the math and makes no step slower may let batches go through whole, at the price
of one restart. Everything is measured in the running job; what was not measured decides nothing.
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.evidence.verdict import Cause, Verdict
from oomguard.job.checkpoint import Mode
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder, Rung
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.process.messages import StepSums, StepTimes
from oomguard.run.attempt import Purpose, Weighed
from oomguard.run.enough import too_little
from oomguard.run.state import Attempt, RunRecord
from oomguard.run.verification import total_steps

#: Steps of each kind that have to be measured before anything is concluded.
DIVIDED_STEPS, WHOLE_STEPS = 8, 3
#: Without a checkpoint, a run is restarted within its first steps only.
FIRST_STEPS = 32
#: Two kinds of steps show what a pass costs only if their passes per token differ so much.
DISTINCT = 0.05


def weigh(attempt: Attempt) -> Weighed | str:
    """Return what a restart of a running attempt would save and cost, or why that is not known."""
    times, planned, load_s = attempt.times, total_steps(attempt), attempt.load_s
    if times is None:
        return "no step has run in parts since the first one"
    if planned is None or load_s is None:
        return "how many steps are left is not known"
    seconds = _seconds(times)
    if isinstance(seconds, str):
        return seconds
    divided_s, whole_s = seconds
    divided = _added(times.divided, times.halved)
    every = _added(times.whole, divided)
    done = attempt.first_step + attempt.steps_done
    return Weighed(
        divided_s=divided_s,
        whole_s=whole_s,
        share=divided.steps / every.steps,
        steps_left=max(0, planned - done),
        load_s=load_s,
        lost_steps=max(0, done - max((attempt.first_step, *attempt.saved))),
        step_s=every.seconds / every.steps,
    )


def _seconds(times: StepTimes) -> tuple[float, float] | str:
    """Return the seconds of a step in parts, and what it would take whole.

    A step takes some time for each pass and some for each token. Two kinds of steps with other
    numbers of passes for their tokens show both.
    """
    divided = times.divided
    if divided.steps < DIVIDED_STEPS:
        return f"only {divided.steps} steps in parts were timed, of {DIVIDED_STEPS} that it needs"
    enough = ((times.whole, WHOLE_STEPS), (times.halved, 1))
    others = (one for one, least in enough if one.steps >= least and _differ(divided, one))
    other = next(others, None)
    if other is None:
        return "no other steps with fewer or more passes for their tokens were timed"
    determinant = divided.passes * other.tokens - other.passes * divided.tokens
    of_pass = (divided.seconds * other.tokens - other.seconds * divided.tokens) / determinant
    of_token = (other.seconds * divided.passes - divided.seconds * other.passes) / determinant
    taken = divided.seconds / divided.steps
    if of_pass <= 0:
        return taken, taken
    whole = of_pass * divided.batches + max(0.0, of_token) * divided.whole_tokens
    return taken, min(taken, whole / divided.steps)


def _differ(one: StepSums, other: StepSums) -> bool:
    """Return whether two kinds of steps have other numbers of passes for their tokens."""
    a, b = one.passes / max(1, one.tokens), other.passes / max(1, other.tokens)
    return abs(a - b) > DISTINCT * max(a, b)


def _added(*groups: StepSums) -> StepSums:
    """Return the sums of several groups of steps."""
    return StepSums(
        steps=sum(one.steps for one in groups),
        batches=sum(one.batches for one in groups),
        passes=sum(one.passes for one in groups),
        tokens=sum(one.tokens for one in groups),
        whole_tokens=sum(one.whole_tokens for one in groups),
        seconds=sum(one.seconds for one in groups),
    )


def worth_a_restart(record: RunRecord, ladder: Ladder, *, saved_now: bool) -> Weighed | None:
    """Return the figures if the running attempt is to be restarted now, else None.

    That is right after a checkpoint or, without one, within the first steps: else work is lost.
    """
    attempt = record.last
    early = not attempt.saved and attempt.steps_done <= FIRST_STEPS
    if not (saved_now or early) or attempt.splits is None or attempt.spec.probe is not None:
        return None
    if attempt.spec.purpose is Purpose.TRIAL or attempt.suspected_t is not None or attempt.caught:
        return None
    figures = weigh(attempt)
    if isinstance(figures, str) or not figures.is_worth_it:
        return None
    plan = cheaper(record, ladder).plan
    return figures if plan is not None and _may_help(record, ladder, plan) else None


def _may_help(record: RunRecord, ladder: Ladder, plan: Plan) -> bool:
    """Return whether a plan keeps all that was trained, and may free enough."""
    job, attempt = record.job, record.last
    if job is None or too_little(record, replace(attempt, verdict=_answered(attempt)), plan):
        return False
    mode, _ = ladder.framework.resume_mode(job, attempt.spec.plan, plan)
    return mode is Mode.FULL or not (attempt.saved or attempt.first_step)


def cheaper(record: RunRecord, ladder: Ladder) -> Rung:
    """Return the first strategy that could let batches through whole without slower steps.

    What it has to answer is the latest OOM that a step in parts has answered.
    """
    job, attempt, why = record.job, record.last, _answered(record.last)
    if job is None or why is None:
        return Rung()
    others = [one.spec.plan for one in record.attempts if one is not attempt]
    return ladder.climb(
        job,
        [*others, attempt.spec.plan],
        attempt.spec.path,
        why,
        trained=bool(record.checkpoints or attempt.saved),
        ruled_out=_not_worth(job, why, ladder),
    )


def _not_worth(job: Job, why: Verdict, ladder: Ladder) -> dict[str, str]:
    """Return the strategies that no job is restarted for while its steps run in parts."""
    found = {}
    for one in ladder.strategies:
        if one.fidelity_for(job) is not Fidelity.SAME_MATH:
            found[one.id] = "it is not the same math"
        elif why.cause not in one.worth_a_restart:
            found[one.id] = f"a running job is not restarted for it ({why.cause.value})"
    return found


def _answered(attempt: Attempt) -> Verdict | None:
    """Return the latest OOM of a process of the job that it went on from, as a verdict."""
    answered = (f for f in reversed(attempt.findings) if f.handled and f.kind.is_memory)
    found = next(answered, None)
    if found is None or found.cause is Cause.GROWTH:
        return None
    return Verdict(
        kind=found.kind,
        cause=found.cause,
        phase=found.phase,
        rank=found.rank,
        step=found.step,
        requested_bytes=found.requested_bytes,
        capacity_bytes=found.capacity_bytes,
        root=found.text,
        evidence=(replace(found, handled=False),),
        phase_known=found.phase_known,
    )
