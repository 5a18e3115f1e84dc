"""The state machine: the record of a run and its latest event determine the next action. Pure.

| state    | event                                        | action                      |
|----------|----------------------------------------------|-----------------------------|
| NEW      | RunStarted, Resumed                          | Launch the requested plan   |
| RUNNING  | Planned                                      | Start its processes         |
| RUNNING  | an out-of-memory error is sure, on any rank  | Stop the whole group        |
| RUNNING  | Saved, and growing memory will run out first | Stop, to restart from there |
| RUNNING  | Split or Saved, and a restart saves seconds  | Stop, for a cheaper change  |
| RUNNING  | no progress for the hang timeout             | Stop                        |
| RUNNING  | it fits, and a smaller change might as well  | Stop, to try that change    |
| RUNNING  | Counted, and it differs from the plan        | Stop                        |
| RUNNING  | Counted, and it is not the allowed same math | Stop, to climb without it   |
| RUNNING  | a probe has taken its steps but not exited   | Stop                        |
| RUNNING  | Signalled                                    | Stop the whole group        |
| RUNNING, STOPPING | Exited, out of memory               | WaitForDevice               |
| RUNNING, STOPPING | Exited, a probe                     | WaitForDevice               |
| RUNNING, STOPPING | Exited, short, and a trial is left  | WaitForDevice               |
| RUNNING, STOPPING | Exited, otherwise                   | Finish                      |
| WAITING  | Resumed                                      | as after the Exited before  |
| RUNNING, WAITING | CutShort                             | WaitForDevice               |
| WAITING  | DeviceFree, stopped for a cheaper change     | Launch with that change     |
| WAITING  | DeviceFree, the plan was not at fault        | Launch the same plan        |
| WAITING  | DeviceFree, after a probe that passed        | Launch a trial, or its plan |
| WAITING  | DeviceFree, a trial is left                  | Launch it                   |
| WAITING  | DeviceFree, after the trials                 | Launch the best that fits   |
| WAITING  | DeviceFree, a strategy is left               | Launch the next plan        |
| WAITING  | DeviceFree, none is left                     | Finish EXHAUSTED            |
| NEW, WAITING | Signalled                                | Finish INTERRUPTED          |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import assert_never

from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.checkpoint import Continuation, Mode
from oomguard.job.plan import Plan
from oomguard.job.training_job import Device, Job
from oomguard.ladder.climb import Ladder, Rung
from oomguard.ladder.strategy_contract import Skip, Untried
from oomguard.run import enough, minimize, no_use, untried, verification
from oomguard.run.attempt import AttemptSpec, Purpose, StopReason, Weighed, probe_of
from oomguard.run.events import (
    Counted,
    CutShort,
    DeviceFree,
    Event,
    Exited,
    Finished,
    Growing,
    LeftRunning,
    Noticed,
    NotSplit,
    Planned,
    Probed,
    Progress,
    Resumed,
    RunStarted,
    Saved,
    Signalled,
    Split,
    Started,
    Status,
    Stopping,
    Ticked,
)
from oomguard.run.grown import not_the_data
from oomguard.run.restart_worth import cheaper, worth_a_restart
from oomguard.run.splits import BOUND, STRATEGY
from oomguard.run.state import Attempt, RunRecord, State, started_job

#: Seconds that a job may continue after an OOM that did not end one of its ranks, as far as is
#: known: it may have caught the error, or deal with a helper process that ran out. Where steps are
#: slow it gets several of them.
PATIENCE_S = 60.0
PATIENCE_STEPS = 3
#: The forecast of when growing memory runs out may be 10% too late.
FORECAST_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Record the next attempt; its processes start once the record is on the disk."""

    spec: AttemptSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProcesses:
    """Start the attempt that was recorded last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop every process of the running attempt; `weighed` is why a restart is worth it."""

    reason: StopReason
    weighed: Weighed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitForDevice:
    """Wait until what the attempt held is free again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """End the run."""

    status: Status
    reason: str
    skipped: tuple[Skip, ...] = ()
    untried: tuple[Untried, ...] = ()


Action = Launch | StartProcesses | Stop | WaitForDevice | Finish
_COMPLETED = Finish(status=Status.FIT, reason="trained to completion")


def decide(record: RunRecord, event: Event, ladder: Ladder) -> Action | None:  # noqa: PLR0911  one for each kind of event
    """Return the action that answers `event`, which is in `record` already; None: go on."""
    match event:
        case Signalled():
            return _on_signal(record, event)
        case Exited():
            return _on_exit(record, event.verdict, ladder)
        case DeviceFree():
            return _on_device(record, event, ladder)
        case RunStarted() | Resumed() | CutShort():
            return _on_beginning(record, event, ladder)
        case Planned():
            return StartProcesses()
        case Finished():
            return None
        case (
            Started()
            | Progress()
            | Counted()
            | Probed()
            | Split()
            | NotSplit()
            | Noticed()
            | Growing()
            | Saved()
            | Stopping()
            | LeftRunning()
            | Ticked()
        ):
            return _on_news(record, event, ladder)
        case _:
            assert_never(event)


def _first(record: RunRecord, ladder: Ladder) -> Launch:
    job, limits = started_job(record)
    if limits.grow:
        return Launch(spec=minimize.smallest(job, ladder))
    if record.start is not None:
        spec = record.start.spec
    else:
        plan, steps = ladder.prepare(job)
        spec = AttemptSpec(plan=plan, steps=steps)
    probing = probe_of(job, spec.plan) if limits.probe else None
    return Launch(spec=replace(spec, probe=probing))


def _on_news(record: RunRecord, event: Event, ladder: Ladder) -> Action | None:  # noqa: PLR0911  one for each reason to stop
    """Return whether a running attempt has to be stopped."""
    if record.state is not State.RUNNING:
        return None
    if _is_sure(record.last, event.t):
        return Stop(reason=StopReason.OUT_OF_MEMORY)
    if isinstance(event, Counted):
        if verification.difference(record):
            return Stop(reason=StopReason.DIFFERS)
        if verification.broken_promise(record):
            return Stop(reason=StopReason.NOT_SAME_MATH)
    if isinstance(event, (Split, Saved)) and (stop := _for_a_restart(record, event, ladder)):
        return stop
    proven = isinstance(event, Progress) and minimize.is_proven(record)
    if proven and minimize.next_trial(record, ladder, record.last) is not None:
        return Stop(reason=StopReason.FITS)
    if record.last.lingers(event.t):
        return Stop(reason=StopReason.PROBED)
    return Stop(reason=StopReason.HANG) if _hangs(record, event.t) else None


def _for_a_restart(record: RunRecord, event: Split | Saved, ladder: Ladder) -> Stop | None:
    """Return whether a job that could go on is better launched again, before more is lost."""
    saved_now = isinstance(event, Saved)
    if saved_now and _runs_out_before_next(record.last):
        return Stop(reason=StopReason.RECYCLE)
    weighed = worth_a_restart(record, ladder, saved_now=saved_now)
    return None if weighed is None else Stop(reason=StopReason.CHEAPER, weighed=weighed)


def _on_beginning(record: RunRecord, event: Event, ladder: Ladder) -> Action | None:
    """Return the first action of a run, or of one that is resumed.

    How the last attempt of a resumed run ended follows in an event of its own: Exited or CutShort.
    """
    if not record.attempts:
        return _first(record, ladder)
    if isinstance(event, CutShort):
        return WaitForDevice()
    verdict = record.last.verdict
    if verdict is None or verdict.kind is Kind.INTERRUPTED:
        return None
    return _on_exit(record, verdict, ladder)


def _on_signal(record: RunRecord, event: Signalled) -> Action | None:
    if record.state is State.RUNNING:
        return Stop(reason=StopReason.SIGNAL)
    if record.state is State.WAITING and record.last.completed:
        return _COMPLETED
    if record.state in (State.NEW, State.WAITING):
        return Finish(status=Status.INTERRUPTED, reason=f"signal {event.signum}")
    return None


def _is_sure(attempt: Attempt, now: float) -> bool:
    """Return whether the attempt is lost: its monitor says so, or no step has followed the OOM."""
    if any(_decisive(finding) for finding in attempt.findings):
        return True
    if attempt.suspected_t is None:
        return False
    return now - attempt.suspected_t >= _patience_s(attempt)


def _runs_out_before_next(attempt: Attempt) -> bool:
    """Return whether growing memory will run out before the next checkpoint is written."""
    growth = attempt.growth
    if growth is None or growth.forecast_step is None:
        return False
    *_, before, newest = (0, 0, *attempt.saved)
    interval = newest - max(before, attempt.first_step)
    # Forecast and steps done both count from the start of the process.
    return attempt.steps_done + interval >= FORECAST_SHARE * growth.forecast_step


def _hangs(record: RunRecord, now: float) -> bool:
    """Return whether a job that has taken steps has shown no progress for the hang timeout."""
    limit_s = record.limits.hang_timeout_s if record.limits else None
    attempt = record.last
    if limit_s is None or attempt.heard_t is None or not attempt.steps_done:
        return False
    return now - attempt.heard_t >= limit_s


def _decisive(finding: Finding) -> bool:
    from_rank = finding.witness is Witness.INSIDE and not finding.helper
    return from_rank and finding.kind.is_memory and not finding.handled


def _patience_s(attempt: Attempt) -> float:
    if not attempt.steps_done or attempt.suspected_t is None or attempt.started_t is None:
        return PATIENCE_S
    step_s = (attempt.suspected_t - attempt.started_t) / attempt.steps_done
    return max(PATIENCE_S, PATIENCE_STEPS * step_s)


def _on_exit(record: RunRecord, verdict: Verdict, ladder: Ladder) -> Action:  # noqa: PLR0911  one for each way to end
    if record.signum is not None and verdict.kind is not Kind.OK:
        return Finish(status=Status.INTERRUPTED, reason=f"signal {record.signum}")
    wrong = _miscounted(record, verdict)
    if wrong is not None:
        return Finish(status=Status.FAILED, reason=wrong)
    if record.last.completed:
        if verification.broken_promise(record):  # it ended before it could be stopped
            return WaitForDevice()
        if _is_tried_again(record, ladder):
            return WaitForDevice()
        return _COMPLETED
    if _goes_on(record.last, verdict):
        return WaitForDevice()
    if record.last.stopped is StopReason.HANG:
        limit_s = record.limits.hang_timeout_s if record.limits else None
        return Finish(status=Status.FAILED, reason=f"no progress from the job for {limit_s:g} s")
    if verdict.kind is Kind.INTERRUPTED:
        return Finish(status=Status.INTERRUPTED, reason=verdict.root or "interrupted")
    return Finish(status=Status.FAILED, reason=verdict.root or "the job failed")


def _is_tried_again(record: RunRecord, ladder: Ladder) -> bool:
    """Return whether a short job that is trained is trained again with fewer changes."""
    tried = record.signum is None and minimize.is_short(record)
    return tried and minimize.next_trial(record, ladder, record.last) is not None


def _miscounted(record: RunRecord, verdict: Verdict) -> str | None:
    """Return why the run ends here, if the job does not have the batch of its plan."""
    if verdict.kind.is_other_failure and record.last.stopped is not StopReason.DIFFERS:
        return None  # its own error says more
    ran_out = verdict.kind.is_memory
    return verification.difference(record) or (verification.misread(record) if ran_out else None)


_RESTARTS = (
    StopReason.RECYCLE, StopReason.FITS, StopReason.PROBED, StopReason.NOT_SAME_MATH,
    StopReason.CHEAPER,
)  # fmt: skip


def _goes_on(attempt: Attempt, verdict: Verdict) -> bool:
    """Return whether another attempt may follow."""
    # Another failure of a trial or a probe is not final: a fault of the job itself will recur.
    expendable = attempt.spec.purpose is Purpose.TRIAL or attempt.spec.probe is not None
    return (
        verdict.kind.is_memory
        or attempt.stopped in _RESTARTS
        or (expendable and (verdict.kind is Kind.OK or verdict.kind.is_other_failure))
        or attempt.refused_step is not None
    )


def _same_plan_goes_on(record: RunRecord, why: Verdict, again: Continuation) -> bool:
    """Return whether the plan itself was not at fault: memory grew, or another process held it.

    Each such launch starts at a later step than the one before, or happens once, so that a run
    still ends.
    """
    attempt = record.last
    if why.phase is Phase.SAVE and attempt.steps_done:
        # Every step is saved; a new process has only the final save left to do, without what
        # training had left in memory.
        trained = attempt.first_step + attempt.steps_done
        if again.checkpoint is not None and again.checkpoint.step >= trained:
            return True
    grew = attempt.stopped is StopReason.RECYCLE or why.cause is Cause.GROWTH
    if grew:
        return again.checkpoint is not None and again.checkpoint.step > attempt.first_step
    before = record.attempts[-2].spec.plan if len(record.attempts) > 1 else None
    return why.cause is Cause.OTHER_PROCESS and before != attempt.spec.plan


def _on_device(record: RunRecord, event: DeviceFree, ladder: Ladder) -> Action:
    job, why, last = record.job, record.last.verdict, record.last
    if job is None or why is None:
        raise AssertionError("a device is waited for only after an attempt of a started run")
    if record.signum is not None or not event.free:
        return _without_another(record, event)
    again = _cheaper(record, job, ladder) or _with_same_plan(record, job, why, ladder)
    if again is not None:
        return again
    broken = verification.broken_promise(record) is not None
    if (_is_shown(last) or last.spec.purpose is Purpose.TRIAL) and not broken:
        return _after_trial(record, job, ladder)
    if last.spec.probe is not None and not (why.kind.is_memory or last.refused_step):
        return Launch(spec=AttemptSpec(plan=last.spec.plan, path=last.spec.path))
    return _climb(record, job, why, ladder)


def _without_another(record: RunRecord, event: DeviceFree) -> Finish:
    """Return how a run ends that cannot launch another attempt."""
    if record.last.completed:
        return _COMPLETED
    if record.signum is not None:
        return Finish(status=Status.INTERRUPTED, reason=f"signal {record.signum}")
    return Finish(status=Status.FAILED, reason=f"the device did not become free: {event.busy}")


def _with_same_plan(record: RunRecord, job: Job, why: Verdict, ladder: Ladder) -> Launch | None:
    """Return a launch of the last plan, where it was not at fault."""
    last = record.last
    again = ladder.begin(job, last.spec.plan, record.checkpoints, damaged=_damaged(record))
    cut_short = (
        why.kind is Kind.INTERRUPTED
        and not _is_shown(last)
        and last.stopped is not StopReason.NOT_SAME_MATH
    )
    if not cut_short and not _same_plan_goes_on(record, why, again):
        return None
    return Launch(spec=replace(last.spec, begins=again, steps=(), skipped=(), undone=()))


def _cheaper(record: RunRecord, job: Job, ladder: Ladder) -> Launch | None:
    """Return the cheaper plan that an attempt was stopped for; its own where that is refused."""
    last = record.last
    before = record.attempts[-2] if len(record.attempts) > 1 else None
    if last.stopped is StopReason.CHEAPER and not last.ran_out:
        rung = cheaper(record, ladder)
        if rung.plan is not None and rung.step is not None:
            path = (*last.spec.path, rung.step.strategy)
            spec = AttemptSpec(plan=rung.plan, steps=(rung.step,), skipped=rung.skipped, path=path)
        else:
            spec = replace(last.spec, steps=(), skipped=(), undone=())
    elif last.refused_step and before is not None and before.stopped is StopReason.CHEAPER:
        spec = replace(before.spec, steps=(), skipped=(), undone=())
    else:
        return None
    begins = ladder.begin(job, spec.plan, record.checkpoints, damaged=_damaged(record))
    return Launch(spec=replace(spec, begins=begins))


def _is_shown(attempt: Attempt) -> bool:
    """Return whether an attempt ended because it had shown that its plan fits."""
    return attempt.stopped is StopReason.FITS or attempt.probe_passed or attempt.completed


def _climb(record: RunRecord, job: Job, why: Verdict, ladder: Ladder) -> Action:
    most = record.limits.max_attempts if record.limits else 0
    if record.rungs_tried >= most:
        found = untried.with_more_attempts(_rung(record, job, why, ladder), most)
        reason = f"none of {most} attempts fits"
        return Finish(status=Status.EXHAUSTED, reason=reason, untried=found)
    idle = no_use.without_effect(record)
    if idle is not None:
        return Finish(status=Status.EXHAUSTED, reason=idle)
    base = _base(record, job)
    if base is record.last and verification.broken_promise(record):  # a plan of an earlier run
        plan, steps = ladder.prepare(job)
        return Launch(spec=AttemptSpec(plan=plan, steps=steps))
    reached = enough.climb_far_enough(
        lambda plans, taken: _rung(record, job, why, ladder, plans=plans, taken=taken),
        lambda plan: enough.too_little(record, base, plan),
    )
    if reached.plan is None:
        return Finish(
            status=Status.EXHAUSTED,
            reason=_exhausted(record, job, base.verdict or why, ladder),
            skipped=reached.skipped,
            untried=untried.with_other_options(
                job, ladder, lambda job, ladder: _rung(record, job, why, ladder)
            ),
        )
    return Launch(
        spec=AttemptSpec(
            plan=reached.plan,
            steps=reached.steps,
            skipped=reached.skipped,
            begins=ladder.begin(job, reached.plan, record.checkpoints, damaged=_damaged(record)),
            path=(*base.spec.path, *(step.strategy for step in reached.steps)),
            not_launched=reached.not_launched,
            probe=probe_of(job, reached.plan) if record.last.spec.probe else None,
        )
    )


def _exhausted(record: RunRecord, job: Job, why: Verdict, ladder: Ladder) -> str:
    if why.cause is not Cause.GROWTH:
        return no_use.nothing_had_effect(record) or "all strategies are exhausted"
    growth = next((one.growth for one in reversed(record.attempts) if one.growth), None)
    on_cpu = job.device is Device.CPU and why.kind is Kind.HOST_OOM
    mode, _ = ladder.framework.resume_mode(job, job.asked, job.asked)
    return not_the_data(growth, on_cpu=on_cpu, resumes=mode is not Mode.RESTART)


def _rung(
    record: RunRecord,
    job: Job,
    why: Verdict,
    ladder: Ladder,
    *,
    plans: Sequence[Plan] = (),
    taken: Sequence[str] = (),
) -> Rung:
    """Return the next step from the attempt that is to be changed.

    `plans` and the strategies `taken` to them count as tried since.
    """
    base = _base(record, job)
    others = (attempt.spec.plan for attempt in record.attempts if attempt is not base)
    why = base.verdict or why
    useless = [name for attempt in record.attempts for name in _backfired(attempt, job)]
    return ladder.climb(
        job,
        [*others, base.spec.plan, *plans],
        (*base.spec.path, *useless, *taken),
        why,
        trained=bool(record.checkpoints),
        ruled_out={**no_use.ruled_out(record, why, ladder), **_learned(base)},
        changes_math=lambda plan: verification.not_same_math(record, plan),
    )


def _learned(attempt: Attempt) -> dict[str, str]:
    """Return strategies that its split steps have shown not to help, each with the reason."""
    width = attempt.single_row
    if width is not None:
        return dict.fromkeys(
            (STRATEGY, BOUND), f"a single row of {width} tokens does not fit either"
        )
    if attempt.undivided is not None:
        return {BOUND: f"its batches were not divided: {attempt.undivided}"}
    bound = attempt.spec.plan.token_bound
    if bound is None:
        return {}
    if not attempt.reporting:
        return {BOUND: "its batches were not divided: no process of the job loaded the monitor"}
    return {STRATEGY: f"its batches are divided already, into parts of at most {bound} tokens"}


def _base(record: RunRecord, job: Job) -> Attempt:
    """Return the attempt to change next: the latest whose step was not refused or moved the OOM.

    The first attempt has no such step.
    """
    return next(
        attempt
        for attempt in reversed(record.attempts)
        if attempt.number == 1
        or not (
            attempt.refused_step or _backfired(attempt, job) or _is_refused_math(record, attempt)
        )
    )


def _is_refused_math(record: RunRecord, attempt: Attempt) -> bool:
    """Return whether its micro batch would have to be the requested one."""
    only_same = verification.allows_only_same(record)
    return only_same and verification.not_same_math(record, attempt.spec.plan) is not None


def _backfired(attempt: Attempt, job: Job) -> tuple[str, ...]:
    """Return its steps that offloaded to the host, if that then ran out of memory."""
    verdict = attempt.verdict
    on_host = verdict is not None and verdict.kind in (Kind.HOST_OOM, Kind.PINNED_OOM)
    before, after = job.asked.offload, attempt.spec.plan.offload
    if not on_host or job.device is Device.CPU or before is None or after is None:
        return ()
    moved = (s.strategy for s in attempt.spec.steps if any(c.field == "offload" for c in s.changes))
    return tuple(moved) if after > before else ()


def _damaged(record: RunRecord) -> bool:
    return any(attempt.damaged for attempt in record.attempts)


def _after_trial(record: RunRecord, job: Job, ladder: Ladder) -> Launch:
    """Launch the next trial with fewer changes than the best plan so far, or the best plan itself.

    Where plans are probed, so are trials: the batches of a first step may be short.
    """
    best = next(attempt for attempt in reversed(record.attempts) if _is_shown(attempt))
    spec = minimize.next_trial(record, ladder, best)
    if spec is None:
        purpose = Purpose.TRAIN if best is record.last else Purpose.BEST
        spec = AttemptSpec(plan=best.spec.plan, path=best.spec.path, purpose=purpose)
    elif best.spec.probe is not None:
        spec = replace(spec, probe=probe_of(job, spec.plan))
    fitting = [attempt for attempt in record.attempts if minimize.may_resume(attempt, spec.path)]
    written = [(found, attempt.spec.plan) for attempt in fitting for found in attempt.checkpoints]
    damaged = any(a.damaged or (a.checkpoints and a not in fitting) for a in record.attempts)
    begins = ladder.begin(job, spec.plan, written, damaged=damaged)
    return Launch(spec=replace(spec, begins=begins))
