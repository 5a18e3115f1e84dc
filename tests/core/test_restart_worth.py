"""Steps in parts or a restart with a cheaper change: decided from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import OPEN, make_job
from oomguard.cli.run_lines import weighed_line
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.checkpoint import Checkpoint, Mode
from oomguard.job.plan import Allocator, LossKernel, Plan
from oomguard.ladder.climb import Ladder
from oomguard.ladder.load import load_strategies
from oomguard.process.messages import StepSums, StepTimes
from oomguard.run.attempt import MARGIN, StopReason, Weighed
from oomguard.run.decide import Launch, Stop, WaitForDevice
from oomguard.run.events import (
    Counted,
    DeviceFree,
    Exited,
    Limits,
    Noticed,
    Progress,
    RunStarted,
    Saved,
    Split,
    Stopping,
)
from oomguard.run.restart_worth import FIRST_STEPS, weigh
from oomguard.strategy import SAME_MATH
from reported import reported
from told import Told

PLAN = Plan(
    micro_batch=16, accumulation=1, loss_kernel=LossKernel.EAGER, allocator=Allocator.DEFAULT
)
INTERRUPTED = Verdict(kind=Kind.INTERRUPTED, root="stopped by oomguard")


def sums(steps: int, passes: int, tokens: int, seconds: float) -> StepSums:
    """Return sums over steps of one batch, each with so many passes, tokens and seconds."""
    return StepSums(
        steps=steps,
        batches=steps,
        passes=steps * passes,
        tokens=steps * tokens,
        whole_tokens=steps * tokens,
        seconds=steps * seconds,
    )


def timed(parts: int, *, of_pass: float, of_token: float, whole: int = 8) -> StepTimes:
    """Return the times of a job with such costs: 20 steps of 4096 tokens in parts, others whole."""
    return StepTimes(
        whole=sums(whole, 1, 1024, of_pass + 1024 * of_token),
        divided=sums(20, parts, 4096, parts * of_pass + 4096 * of_token),
        halved=sums(0, 0, 0, 0.0),
    )


SLOW = timed(16, of_pass=1.0, of_token=1e-4)  # 16.4 s in parts, 1.4 s whole


class Job(Told):
    """A job on a GPU whose steps run in parts, of `steps` in all; each takes a minute to load."""

    def begin(self, steps: int = 1000, done: int = 30, cause: Cause = Cause.CAPACITY) -> None:
        self.ladder = Ladder(strategies=tuple(load_strategies()), framework=OPEN, allow=SAME_MATH)
        limits = Limits(
            ladder=tuple(one.id for one in self.ladder.strategies), allow=SAME_MATH,
            max_attempts=9, in_place=True,
        )  # fmt: skip
        job = make_job(PLAN, packages=frozenset({"liger_kernel"}))
        self.launch(
            self.happen(
                RunStarted(t=0, run="r", version="0", at="now", job=job, limits=limits)
            )
        )  # fmt: skip
        training = reported("training", total_steps=steps).report
        self.happen(
            Counted(t=2, attempt=1, pid=7, rank=None, world=None, step=0, training=training)
        )
        found = Finding(
            witness=Witness.INSIDE, kind=Kind.DEVICE_OOM, text="CUDA out of memory", cause=cause,
            phase=Phase.FORWARD, handled=True,
        )  # fmt: skip
        self.happen(Noticed(t=50, attempt=1, finding=found))
        self.progress(61, 1)
        self.progress(100, done)

    def progress(self, t: float, step: int):
        return self.happen(
            Progress(t=t, attempt=1, pid=7, rank=None, step=step, phase=Phase.OPTIMIZER)
        )

    def split(self, times: StepTimes | None):
        return self.happen(
            Split(
                t=101, attempt=1, pid=7, rank=None, step=30, steps=20, failed=0, parts=16, rows=1,
                width=256, tokens=4096, seconds=0.0, spans=((11, 30),), timing=times,
            )
        )  # fmt: skip

    def save(self, step: int):
        return self.happen(
            Saved(t=102, attempt=1, checkpoint=Checkpoint(path=f"/c/{step}", step=step))
        )


def told(**fields: object) -> Job:
    job = Job()
    job.begin(**fields)  # type: ignore[arg-type]
    return job


def test_early_in_a_run_a_fused_loss_is_worth_a_restart():
    job = told()
    action = job.split(SLOW)
    assert isinstance(action, Stop)
    assert action.reason is StopReason.CHEAPER
    figures = action.weighed
    assert figures is not None
    assert (figures.divided_s, figures.whole_s) == pytest.approx((16.4096, 1.4096))
    assert figures.share == 20 / 28
    assert (figures.steps_left, figures.lost_steps, figures.load_s) == (970, 30, 60.0)
    assert weighed_line(figures) == (
        "restarting with a cheaper change: 16.4 s for a step in parts, about 1.41 s whole; over "
        f"the 970 steps left that is {figures.saved_s:.0f} s, and a restart costs "
        f"{figures.cost_s:.0f} s"
    )
    job.happen(Stopping(t=103, attempt=1, reason=action.reason, weighed=figures))
    assert job.record.last.weighed == figures
    ended = job.happen(Exited(t=104, attempt=1, returncode=-9, verdict=INTERRUPTED))
    assert isinstance(ended, WaitForDevice)
    again = job.happen(DeviceFree(t=105, attempt=1, free=True, waited_s=0))
    assert isinstance(again, Launch)
    assert again.spec.plan == replace(PLAN, loss_kernel=LossKernel.FUSED)
    assert again.spec.path == ("fused_loss",)
    assert again.spec.plan.rank_batch == 16


def test_where_the_framework_refuses_it_the_job_goes_on_in_parts():
    job = told()
    action = job.split(SLOW)
    assert isinstance(action, Stop)
    job.happen(Stopping(t=103, attempt=1, reason=action.reason, weighed=action.weighed))
    job.happen(Exited(t=104, attempt=1, returncode=-9, verdict=INTERRUPTED))
    again = job.happen(DeviceFree(t=105, attempt=1, free=True, waited_s=0))
    assert isinstance(again, Launch)
    job.launch(again)
    refused = Verdict(kind=Kind.NOT_OOM, root="ValueError: liger kernel is not supported")
    job.happen(Exited(t=120, attempt=2, returncode=1, verdict=refused))
    assert job.record.last.refused_step is not None
    whole = job.happen(DeviceFree(t=121, attempt=2, free=True, waited_s=0))
    assert isinstance(whole, Launch)
    assert whole.spec.plan == PLAN
    job.launch(whole)
    assert len(job.record.attempts) == 3


def test_expandable_segments_are_for_fragmented_memory():
    job = told(cause=Cause.FRAGMENTATION)
    action = job.split(SLOW)
    assert isinstance(action, Stop)
    job.happen(Stopping(t=103, attempt=1, reason=action.reason, weighed=action.weighed))
    job.happen(Exited(t=104, attempt=1, returncode=-9, verdict=INTERRUPTED))
    again = job.happen(DeviceFree(t=105, attempt=1, free=True, waited_s=0))
    assert isinstance(again, Launch)
    assert again.spec.path == ("expandable_segments",)


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (timed(16, of_pass=0.0, of_token=1e-3), None),  # parts cost nothing more
        (
            timed(16, of_pass=1.0, of_token=1e-4, whole=0),
            "no other steps with fewer or more passes",
        ),
        (timed(4, of_pass=1.0, of_token=1e-4), "no other steps with fewer or more passes"),
        (None, "no step has run in parts"),
    ],
)
def test_what_is_not_measured_decides_nothing(times, why):
    job = told()
    assert job.split(times) is None
    found = weigh(job.record.last)
    if why is None:
        assert isinstance(found, Weighed)
        assert found.saved_s == 0
    else:
        assert isinstance(found, str)
        assert found.startswith(why)


def test_one_step_in_twice_the_parts_shows_what_a_pass_costs():
    alike = StepTimes(
        whole=sums(0, 0, 0, 0.0),
        divided=sums(20, 4, 4096, 4 * 0.5 + 0.4),
        halved=sums(1, 8, 4096, 8 * 0.5 + 0.4),
    )
    job = told()
    assert isinstance(job.split(alike), Stop)
    found = weigh(job.record.last)
    assert isinstance(found, Weighed)
    assert (found.divided_s, found.whole_s) == pytest.approx((2.4, 0.9))


def test_without_a_checkpoint_only_the_first_steps_are_given_up():
    assert told(done=FIRST_STEPS).split(SLOW) is not None
    late = told(done=FIRST_STEPS + 1)
    assert late.split(SLOW) is None
    assert isinstance(late.save(FIRST_STEPS + 1), Stop)  # nothing is lost now
    assert late.progress(103, FIRST_STEPS + 9) is None
    assert late.split(SLOW) is None  # until the next one


def test_no_job_is_restarted_that_would_lose_what_it_has_trained():
    late = told(done=FIRST_STEPS + 1)
    loses = replace(OPEN, resume_mode=lambda _job, _before, _after: (Mode.WEIGHTS, "other states"))
    late.ladder = replace(late.ladder, framework=loses)
    assert late.split(SLOW) is None
    assert late.save(FIRST_STEPS + 1) is None


costs = st.floats(0.001, 50)


@given(
    st.floats(0.0, 5.0), st.floats(1e-6, 1e-2), st.integers(5, 64), st.integers(1, 100_000),
    st.integers(1, FIRST_STEPS),
)  # fmt: skip
def test_a_restart_saves_more_than_it_costs_and_late_there_is_none(
    of_pass, of_token, parts, steps, done
):
    """The true costs are known here: no restart is decided that they do not pay for."""
    job = told(steps=steps, done=done)
    action = job.split(timed(parts, of_pass=of_pass, of_token=of_token))
    left = max(0, steps - done)
    saved = (parts - 1) * of_pass * left * 20 / 28
    every = timed(parts, of_pass=of_pass, of_token=of_token)
    step_s = (every.whole.seconds + every.divided.seconds) / 28
    cost = 60.0 + done * step_s
    if saved > 1.01 * MARGIN * cost:
        assert isinstance(action, Stop)
    elif saved < 0.99 * MARGIN * cost:
        assert action is None
    if steps <= done:
        assert action is None


@given(
    st.builds(
        Weighed,
        divided_s=costs,
        whole_s=costs,
        share=st.floats(0, 1),
        steps_left=st.integers(0, 10_000),
        load_s=costs,
        lost_steps=st.integers(0, 100),
        step_s=costs,
    )
)
def test_with_fewer_steps_left_a_restart_is_never_worth_more(found):
    later = replace(found, steps_left=found.steps_left // 2)
    assert later.saved_s <= found.saved_s
    assert found.is_worth_it or not later.is_worth_it
    assert not replace(found, steps_left=0).is_worth_it
    assert not replace(found, whole_s=found.divided_s).is_worth_it
