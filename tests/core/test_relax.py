"""Giving back: the search for the plan that fits with the least changed, by event histories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators import OPEN, jobs, make_job, make_ladder
from oomguard.cli.console import Console
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.checkpoint import Checkpoint, Continuation, Mode
from oomguard.job.plan import Plan, Quantization, Tuning
from oomguard.ladder.climb import Ladder
from oomguard.run.attempt import AttemptSpec, Purpose, StopReason
from oomguard.run.decide import Action, Finish, Launch, Stop, WaitForDevice
from oomguard.run.events import (
    CutShort,
    DeviceFree,
    Exited,
    Limits,
    Planned,
    Progress,
    RunStarted,
    Signalled,
    Status,
    Stopping,
    event_from_json,
    event_to_json,
)
from oomguard.run.minimize import MOST_TRIALS, PROOF_STEPS_AT_MOST
from oomguard.run.state import replay
from oomguard.strategy import Fidelity
from told import Told

OOM = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
STOPPED = Verdict(kind=Kind.INTERRUPTED)
OK = Verdict(kind=Kind.OK)
LLM = Plan(
    micro_batch=4,
    accumulation=1,
    sequence_length=2048,
    tuning=Tuning.LORA,
    quantization=Quantization.NONE,
)
THREE = ("halve_micro_batch", "cut_cutoff_len", "enable_qlora")
COSTS = {strategy.id: strategy.fidelity.cost for strategy in make_ladder().strategies}


@dataclass
class Run(Told):
    """A job of `steps` steps that is out of memory at `late` unless `fits` says otherwise."""

    fits: object  # of a Launch
    job: object = field(default_factory=lambda: make_job(LLM))
    relax: bool = True
    grow: bool = False
    late: int = 1
    steps: int = 10
    saves: bool = False
    trial_fails: bool = False
    launches: list[AttemptSpec] = field(default_factory=list)

    def to_the_end(self, most: int = 500) -> Finish:
        limits = Limits(
            ladder=(), allow=self.ladder.allow, max_attempts=400, relax=self.relax, grow=self.grow
        )
        action = self.happen(
            RunStarted(t=0, run="r", version="0", at="now", job=self.job, limits=limits)
        )
        for _ in range(most):
            if isinstance(action, Finish):
                return action
            assert isinstance(action, Launch)
            self.launches.append(action.spec)
            action = self.attempt(action, len(self.launches))
        pytest.fail(f"the run did not end after {most} attempts")

    def attempt(self, action: Launch, number: int) -> Action | None:
        self.launch(action)
        verdict = self.train(action, number)
        action_ = self.happen(Exited(t=3, attempt=number, returncode=1, verdict=verdict))
        if not isinstance(action_, WaitForDevice):
            return action_
        saved = (Checkpoint(path=f"/out/{number}", step=number),) if self.saves else ()
        return self.happen(
            DeviceFree(t=4, attempt=number, free=True, waited_s=0, checkpoints=saved)
        )

    def train(self, action: Launch, number: int) -> Verdict:
        fits = self.fits(action.spec)
        for step in range(1, self.steps + 1):
            if not fits and step > self.late:
                return OOM
            if self.trial_fails and action.spec.purpose is Purpose.TRIAL:
                return Verdict(kind=Kind.NOT_OOM, root="ValueError: not these two together")
            said = self.happen(
                Progress(t=2, attempt=number, pid=7, rank=0, step=step, phase=Phase.FORWARD)
            )
            if isinstance(said, Stop):
                assert said.reason == StopReason.FITS
                self.happen(Stopping(t=2, attempt=number, reason=said.reason))
                return STOPPED
        return OK

    @property
    def first_fit(self) -> AttemptSpec:
        return next(one for one in self.launches if self.fits(one))


def needs(*rungs: str):
    """A job that fits when these rungs are taken, each as often as named."""
    wanted = Counter(rungs)
    return lambda launch: not wanted - Counter(launch.path)


def test_sequences_are_given_back_where_qlora_alone_is_enough():
    run = Run(fits=needs("enable_qlora"), ladder=make_ladder(ladder=",".join(THREE)))
    assert run.to_the_end().status is Status.FIT

    assert "cut_cutoff_len" in run.first_fit.path
    last = run.launches[-1]
    assert last.purpose is Purpose.TRIAL
    assert last.undone == ("cut_cutoff_len",) * 3
    assert last.plan.sequence_length == 2048
    assert last.plan.quantization is Quantization.NF4_DOUBLE
    assert run.record.attempts[-2].stopped == StopReason.FITS


def test_the_best_that_fits_is_launched_again_when_less_is_not_enough():
    fits = needs("enable_qlora", "cut_cutoff_len")
    run = Run(fits=fits, ladder=make_ladder(ladder=",".join(THREE)))
    assert run.to_the_end().status is Status.FIT

    trials = [one for one in run.launches if one.purpose is Purpose.TRIAL]
    # All three cuts are one too many to give back; one of them has to stay.
    assert [Counter(one.undone)["cut_cutoff_len"] for one in trials] == [3, 2]
    assert run.launches[-1] == trials[-1]
    assert run.launches[-1].plan.sequence_length == 1024


@pytest.mark.parametrize(("steps", "late"), [(1, 0), (2, 1), (6, 5)])
def test_a_job_that_ends_before_it_could_be_stopped_gives_back_what_it_does_not_need(steps, late):
    ladder = make_ladder(ladder=",".join(THREE))
    run = Run(fits=needs("enable_qlora"), ladder=ladder, steps=steps, late=late)
    assert run.to_the_end().status is Status.FIT

    trained = [one for one in run.record.attempts if one.verdict.kind is Kind.OK]
    assert run.launches[-1].plan.sequence_length == 2048
    assert run.launches[-1].plan.quantization is Quantization.NF4_DOUBLE
    assert [one.spec.purpose for one in trained[-1:]] == [Purpose.TRIAL]


def test_a_short_job_ends_as_the_best_that_was_trained_where_less_is_not_enough():
    fits = needs("enable_qlora", "cut_cutoff_len", "cut_cutoff_len", "cut_cutoff_len")
    run = Run(fits=fits, ladder=make_ladder(ladder=",".join(THREE)), steps=1, late=0)
    assert run.to_the_end().status is Status.FIT
    assert run.launches[-1].purpose is Purpose.BEST
    assert run.launches[-1].plan == run.first_fit.plan


def test_a_trained_short_job_is_trained_once_without_relax_and_if_it_took_more_steps():
    for relax, steps in ((False, 1), (True, 40)):
        run = Run(fits=needs("enable_qlora"), relax=relax, steps=steps, late=0,
                  ladder=make_ladder(ladder=",".join(THREE)))  # fmt: skip
        run.to_the_end()
        trained = [one for one in run.record.attempts if one.verdict.kind is Kind.OK]
        assert len(trained) == 1


@pytest.mark.parametrize("news", ["signal", "busy"])
def test_a_short_job_is_trained_whatever_keeps_it_from_a_trial(news):
    run = Run(
        fits=needs("enable_qlora"), ladder=make_ladder(ladder=",".join(THREE)), steps=1, late=0
    )
    limits = Limits(ladder=(), allow=run.ladder.allow, max_attempts=400, relax=True)
    started = RunStarted(t=0, run="r", version="0", at="now", job=run.job, limits=limits)
    action, number = run.happen(started), 0
    while not run.record.attempts or run.record.last.verdict is not OK:
        number += 1
        run.launch(action)
        verdict = run.train(action, number)
        said = run.happen(Exited(t=3, attempt=number, returncode=1, verdict=verdict))
        if verdict is not OK:
            action = run.happen(DeviceFree(t=4, attempt=number, free=True, waited_s=0))
    assert isinstance(said, WaitForDevice)
    if news == "signal":
        action = run.happen(Signalled(t=4, signum=15))
    else:
        free = DeviceFree(t=4, attempt=number, free=False, waited_s=60, busy="another process")
        action = run.happen(free)
    assert isinstance(action, Finish)
    assert action.status is Status.FIT


def test_a_trial_that_was_cut_short_goes_on_and_is_called_that(capfd):
    run = Run(fits=needs("enable_qlora"), ladder=make_ladder(ladder=",".join(THREE)))
    run.to_the_end()
    trial = run.record.attempts[-1]
    assert trial.spec.undone
    index = next(place for place, event in enumerate(run.events) if isinstance(event, Planned)
                 and event.attempt == trial.number)  # fmt: skip
    run.record = replay(run.events[: index + 1])
    run.happen(CutShort(t=8, attempt=trial.number, verdict=STOPPED))
    action = run.happen(DeviceFree(t=9, attempt=trial.number, free=True, waited_s=0))
    assert (action.spec.plan, action.spec.purpose) == (trial.spec.plan, Purpose.TRIAL)
    run.launch(action)
    for number in (trial.number, trial.number + 1):
        planned = next(
            event for event in run.events if isinstance(event, Planned) and event.attempt == number
        )
        Console(quiet_stdout=True).event(planned, run.record)
    said = capfd.readouterr().err
    assert "fits; retrying without cut_cutoff_len to see if it was needed" in said
    assert "continuing the trial with fewer changes, which was cut short" in said
    assert "without  to" not in said


def test_a_trial_that_fails_otherwise_ends_in_the_best_that_fits():
    run = Run(
        fits=needs("enable_qlora"),
        ladder=make_ladder(ladder=",".join(THREE)),
        trial_fails=True,
    )
    assert run.to_the_end().status is Status.FIT
    assert run.launches[-1].purpose is Purpose.BEST
    assert run.launches[-1].plan == run.first_fit.plan


def test_a_late_shortage_is_shown_to_be_gone_by_more_steps():
    run = Run(fits=needs("enable_qlora"), ladder=make_ladder(ladder=",".join(THREE)), late=6)
    run.to_the_end()
    fitted = next(attempt for attempt in run.record.attempts if attempt.stopped == StopReason.FITS)
    assert fitted.steps_done == 7


def test_nothing_is_given_back_where_showing_it_would_cost_too_much():
    run = Run(
        fits=needs("enable_qlora"),
        ladder=make_ladder(ladder=",".join(THREE)),
        late=PROOF_STEPS_AT_MOST,
    )
    run.to_the_end()
    assert all(one.purpose is Purpose.TRAIN for one in run.launches)


@pytest.mark.parametrize(
    "fits",
    [needs(), needs("halve_micro_batch"), needs("cut_cutoff_len")],
    ids=["as asked", "same math", "nothing before it"],
)
def test_a_fit_with_nothing_to_give_back_is_not_stopped(fits):
    run = Run(fits=fits, ladder=make_ladder(ladder=",".join(THREE)))
    assert run.to_the_end().status is Status.FIT
    assert all(attempt.stopped is None for attempt in run.record.attempts)
    assert run.launches[-1] == run.first_fit


def test_without_relax_the_first_fit_is_the_last():
    run = Run(fits=needs("enable_qlora"), relax=False)
    run.to_the_end()
    assert run.launches[-1] == run.first_fit


def test_a_trial_does_not_go_on_from_what_was_trained_at_a_higher_cost():
    keeps = lambda _job, before, after: (  # noqa: E731
        (Mode.FULL, "") if before.quantization is after.quantization else (Mode.RESTART, "base")
    )
    ladder = Ladder(
        strategies=make_ladder(ladder=",".join(THREE)).strategies,
        framework=replace(OPEN, resume_mode=keeps),
    )
    run = Run(fits=needs("enable_qlora"), ladder=ladder, saves=True)
    run.to_the_end()
    trial = run.launches[-1]
    assert trial.purpose is Purpose.TRIAL
    assert trial.begins == Continuation(mode=Mode.RESTART, reason="base", hide=True)


def test_growing_begins_small_and_ends_with_the_largest_that_fits():
    fits = needs("cut_cutoff_len", "halve_micro_batch")
    run = Run(fits=fits, grow=True)
    assert run.to_the_end().status is Status.FIT

    first, last = run.launches[0], run.launches[-1]
    assert (first.plan.sequence_length, first.plan.micro_batch) == (256, 1)
    assert (last.plan.sequence_length, last.plan.micro_batch) == (1024, 2)
    assert last.purpose is Purpose.BEST
    lengths = [one.plan.sequence_length for one in run.launches]
    assert lengths == [256, 512, 1024, 2048, 1024, 1024, 1024]


def test_growing_a_job_that_fits_as_asked_ends_as_asked():
    run = Run(fits=needs(), grow=True)
    run.to_the_end()
    assert run.launches[-1].plan == LLM
    assert run.launches[-1].path == ()


def test_growing_takes_what_may_change_only():
    run = Run(fits=needs(), grow=True, ladder=make_ladder(Fidelity.SAME_MATH))
    run.to_the_end()
    assert {one.plan.sequence_length for one in run.launches} == {2048}
    assert [one.plan.micro_batch for one in run.launches] == [1, 2, 4]


@given(
    job=jobs,
    weights=st.dictionaries(st.sampled_from(sorted(COSTS)), st.integers(0, 9)),
    need=st.integers(0, 30),
    relax=st.booleans(),
    grow=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_search_ends_with_no_plan_tried_twice_and_no_more_changed_than_its_first_fit(
    job, weights, need, relax, grow
):
    run = Run(
        fits=lambda launch: sum(weights.get(name, 0) for name in launch.path) >= need,
        job=job,
        relax=relax,
        grow=grow,
    )
    end = run.to_the_end()

    tried = [one.plan for one in run.launches if one.purpose is not Purpose.BEST]
    assert all(a != b for i, a in enumerate(tried) for b in tried[i + 1 :])
    assert {plan.rank_batch * job.world.size for plan in tried} == {job.global_batch}
    trials = [one for one in run.launches if one.purpose is Purpose.TRIAL]
    assert len(trials) <= MOST_TRIALS
    if end.status is Status.FIT:
        last, first = run.launches[-1], run.first_fit
        assert run.fits(last)
        assert not Counter(last.path) - Counter(first.path)
        dearest = [max((COSTS[name] for name in one.path), default=0) for one in (last, first)]
        assert dearest[0] <= dearest[1]
    again = [event_from_json(event_to_json(event)) for event in run.events]
    assert replay(again) == run.record


@given(seed=st.integers(0, 1 << 30), relax=st.booleans(), grow=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_search_ends_even_where_memory_follows_no_rule(seed, relax, grow):
    asked = replace(LLM, micro_batch=8)
    run = Run(
        fits=lambda launch: crc32(f"{seed}{launch.plan}".encode()) % 3 == 0,
        job=make_job(asked),
        relax=relax,
        grow=grow,
    )
    end = run.to_the_end()
    assert end.status in (Status.FIT, Status.EXHAUSTED)
    assert end.status is Status.EXHAUSTED or run.fits(run.launches[-1])
