"""The state machine, by event histories: no process, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import failures, jobs, make_job, make_ladder
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.checkpoint import Checkpoint
from oomguard.job.plan import Plan, Sharding, Tuning
from oomguard.run.attempt import AttemptSpec, StopReason
from oomguard.run.decide import (
    PATIENCE_S,
    PATIENCE_STEPS,
    Finish,
    Launch,
    Stop,
    WaitForDevice,
)
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Finished,
    Growing,
    Limits,
    Noticed,
    Planned,
    Progress,
    RunStarted,
    Saved,
    Signalled,
    Status,
    Stopping,
    Ticked,
    event_from_json,
    event_to_json,
)
from oomguard.run.leak import Growth
from oomguard.run.state import State, replay
from told import Told

TEXT = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
OOM = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
LIMITS = Limits(ladder=("halve_micro_batch",), allow=make_ladder().allow, max_attempts=20)


@dataclass(kw_only=True)
class Story(Told):
    job: object = None
    limits: Limits = LIMITS

    def begin(self):
        job = self.job or make_job()
        return self.happen(
            RunStarted(
                t=0, run="r", version="0", at="2026-01-01T00:00:00Z", job=job, limits=self.limits
            )
        )

    def exit(self, verdict, t=9.0, returncode=1):
        return self.happen(
            Exited(t=t, attempt=len(self.record.attempts), returncode=returncode, verdict=verdict)
        )

    def free(self, free=True):
        attempt = len(self.record.attempts)
        return self.happen(DeviceFree(t=10.0, attempt=attempt, free=free, waited_s=0.1, busy="GPU"))

    def notice(self, witness, t, kind=Kind.DEVICE_OOM, **fields):
        finding = Finding(
            witness=witness,
            kind=kind,
            text=TEXT,
            **fields,
        )
        return self.happen(Noticed(t=t, attempt=1, finding=finding))


@pytest.fixture
def story():
    asked = Plan(micro_batch=16, accumulation=1, sequence_length=4096)
    story = Story(job=make_job(asked))
    story.launch(story.begin())
    return story


def test_the_first_attempt_is_the_plan_that_was_asked_for():
    story = Story()
    assert story.begin() == Launch(spec=AttemptSpec(plan=story.record.job.asked))


def test_auto_find_batch_size_is_off_before_the_first_attempt_and_it_says_so():
    story = Story(job=make_job(Plan(micro_batch=4, accumulation=2, auto_find_batch_size=True)))
    action = story.begin()
    assert action.spec.plan.auto_find_batch_size is False
    assert [step.strategy for step in action.spec.steps] == ["disable_auto_find_batch_size"]


def test_a_memory_failure_waits_for_the_device_then_climbs(story):
    assert story.exit(OOM) == WaitForDevice()
    action = story.free()
    assert (action.spec.plan.micro_batch, action.spec.plan.accumulation) == (8, 2)


def test_a_fit_ends_the_run(story):
    action = story.exit(Verdict(kind=Kind.OK), returncode=0)
    assert action == Finish(status=Status.FIT, reason="trained to completion")


def test_any_other_failure_ends_the_run_at_once_with_the_jobs_own_error(story):
    action = story.exit(Verdict(kind=Kind.NOT_OOM, root="ValueError: bad key"))
    assert action == Finish(status=Status.FAILED, reason="ValueError: bad key")


def test_an_oom_that_ends_the_process_stops_the_group_at_once(story):
    assert story.notice(Witness.INSIDE, t=2.0, rank=1) == Stop(reason=StopReason.OUT_OF_MEMORY)


def test_an_oom_that_the_job_caught_stops_nothing(story):
    assert story.notice(Witness.INSIDE, t=2.0, handled=True) is None
    assert story.happen(Ticked(t=600.0)) is None


@pytest.mark.parametrize(
    ("witness", "fields"),
    [
        (Witness.LOG, {}),
        (Witness.KERNEL, {"kind": Kind.HOST_OOM}),
        (Witness.INSIDE, {"helper": True}),
    ],
)
def test_what_may_not_have_ended_a_rank_gets_patience(story, witness, fields):
    assert story.notice(witness, t=2.0, **fields) is None
    assert story.happen(Ticked(t=2.0 + PATIENCE_S - 0.1)) is None
    assert story.happen(Ticked(t=2.0 + PATIENCE_S)) == Stop(reason=StopReason.OUT_OF_MEMORY)


def test_a_job_of_slow_steps_gets_several_of_them(story):
    story.happen(Progress(t=801.0, attempt=1, pid=7, rank=None, step=8, phase=Phase.BACKWARD))
    story.notice(Witness.LOG, t=801.0)
    slow_s = PATIENCE_STEPS * 100
    assert story.happen(Ticked(t=801.0 + slow_s - 1)) is None
    assert story.happen(Ticked(t=801.0 + slow_s)) == Stop(reason=StopReason.OUT_OF_MEMORY)


@pytest.mark.parametrize(("follows", "kind"), [(True, Kind.UNKNOWN), (False, Kind.HOST_OOM)])
def test_a_helper_explains_the_end_of_the_job_unless_steps_followed_it(story, follows, kind):
    story.notice(Witness.INSIDE, t=2.0, kind=Kind.HOST_OOM, helper=True)
    if follows:
        story.happen(Progress(t=2.5, attempt=1, pid=7, rank=None, step=1, phase=Phase.FORWARD))
    assert story.record.last.concluded(-9).kind is kind


def test_a_step_after_the_oom_text_shows_that_it_was_caught(story):
    story.notice(Witness.LOG, t=2.0)
    story.happen(Progress(t=2.5, attempt=1, pid=7, rank=None, step=1, phase=Phase.FORWARD))
    assert story.happen(Ticked(t=60.0)) is None


def test_a_stop_is_decided_once(story):
    story.notice(Witness.INSIDE, t=2.0)
    story.happen(Stopping(t=2.0, attempt=1, reason=StopReason.OUT_OF_MEMORY))
    assert story.notice(Witness.INSIDE, t=2.1, rank=3) is None


def test_a_signal_stops_a_running_attempt_and_ends_the_run(story):
    assert story.happen(Signalled(t=3.0, signum=15)) == Stop(reason=StopReason.SIGNAL)
    story.happen(Stopping(t=3.0, attempt=1, reason=StopReason.SIGNAL))
    action = story.exit(Verdict(kind=Kind.INTERRUPTED), returncode=-15)
    assert action == Finish(status=Status.INTERRUPTED, reason="signal 15")


def test_a_job_that_finishes_in_spite_of_the_signal_has_trained(story):
    story.happen(Signalled(t=3.0, signum=2))
    assert story.exit(Verdict(kind=Kind.OK), returncode=0).status is Status.FIT


def test_a_signal_while_waiting_ends_the_run(story):
    story.exit(OOM)
    assert story.happen(Signalled(t=9.5, signum=2)).status is Status.INTERRUPTED


def test_a_device_that_stays_busy_fails_the_run_and_climbs_nothing(story):
    story.exit(OOM)
    action = story.free(free=False)
    assert action.status is Status.FAILED
    assert "GPU" in action.reason


def test_max_attempts_exhausts_the_run():
    limits = Limits(ladder=(), allow=make_ladder().allow, max_attempts=1)
    story = Story(limits=limits)
    story.launch(story.begin())
    story.exit(OOM)
    assert story.free().status is Status.EXHAUSTED


REFUSAL = Verdict(kind=Kind.NOT_OOM, root="job.py: error: unrecognized arguments: --bf16 True")


def test_a_change_that_the_framework_refuses_ends_the_rung_and_not_the_run(story):
    story.exit(OOM)
    story.launch(story.free())
    assert story.exit(REFUSAL, returncode=2) == WaitForDevice()
    action = story.free()
    refused, after = story.record.last.spec.plan, action.spec.plan
    assert after not in (refused, story.record.job.asked)
    assert refused.micro_batch == 8
    assert after.micro_batch == story.record.job.asked.micro_batch, (
        "it climbs from what was not refused"
    )


def test_a_refusal_of_what_the_user_wrote_ends_the_run(story):
    assert story.exit(REFUSAL, returncode=2).status is Status.FAILED


def test_a_failure_after_a_step_is_no_refusal(story):
    story.exit(OOM)
    story.launch(story.free())
    story.happen(stepped(1, attempt=2))
    assert story.exit(REFUSAL, returncode=2).status is Status.FAILED


def growing(step, forecast, t=5.0):
    growth = Growth(
        step=step, bytes_per_step=1, used_bytes=1, limit_bytes=9, forecast_step=forecast
    )
    return Growing(t=t, attempt=1, rank=None, growth=growth)


def stepped(step, t=5.0, attempt=1):
    return Progress(t=t, attempt=attempt, pid=7, rank=None, step=step, phase=Phase.SAVE)


def saved(step, t=5.0):
    return Saved(t=t, attempt=1, checkpoint=Checkpoint(path=f"/c/{step}", step=step))


def test_growing_memory_is_begun_again_at_the_last_checkpoint_that_it_lasts_for(story):
    story.happen(growing(step=12, forecast=38))
    for step in (10, 20):
        story.happen(stepped(step))
        assert story.happen(saved(step)) is None
    story.happen(stepped(30))
    assert story.happen(saved(30)) == Stop(reason=StopReason.RECYCLE)
    story.happen(Stopping(t=5.1, attempt=1, reason=StopReason.RECYCLE))
    assert story.exit(Verdict(kind=Kind.NOT_OOM), returncode=-15) == WaitForDevice()
    action = story.happen(
        DeviceFree(t=6.0, attempt=1, free=True, waited_s=0, checkpoints=(saved(30).checkpoint,))
    )
    assert action.spec.plan == story.record.job.asked
    assert action.spec.begins.checkpoint.step == 30
    assert story.record.rungs_tried == 1


def test_without_growth_a_checkpoint_stops_nothing(story):
    story.happen(stepped(30))
    assert story.happen(saved(30)) is None


def test_growth_that_ran_out_begins_again_only_where_there_was_progress(story):
    grew = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD, cause=Cause.GROWTH)
    story.exit(grew)
    again = story.happen(
        DeviceFree(t=6.0, attempt=1, free=True, waited_s=0, checkpoints=(saved(30).checkpoint,))
    )
    assert (again.spec.plan, again.spec.begins.checkpoint.step) == (story.record.job.asked, 30)
    story.happen(Planned(t=6.0, attempt=2, spec=again.spec))
    story.exit(grew)
    climbed = story.free()
    assert climbed.spec.plan.micro_batch == 8
    assert climbed.spec.begins.checkpoint.step == 30


def test_a_save_at_the_end_is_done_again_by_a_process_that_has_trained_nothing(story):
    in_save = Verdict(kind=Kind.HOST_OOM, phase=Phase.SAVE)
    free = DeviceFree(t=6.0, attempt=1, free=True, waited_s=0, checkpoints=(saved(30).checkpoint,))
    story.happen(stepped(30))
    story.exit(in_save)
    again = story.happen(free)
    assert (again.spec.plan, again.spec.begins.checkpoint.step) == (story.record.job.asked, 30)
    story.happen(Planned(t=6.0, attempt=2, spec=again.spec))
    story.exit(in_save)
    assert story.free() != again, "once"


def test_a_save_that_leaves_steps_unsaved_is_no_reason_to_take_them_again_as_they_were(story):
    story.happen(stepped(31))
    story.exit(Verdict(kind=Kind.DEVICE_OOM, phase=Phase.SAVE))
    free = DeviceFree(t=6.0, attempt=1, free=True, waited_s=0, checkpoints=(saved(30).checkpoint,))
    assert getattr(story.happen(free), "plan", None) != story.record.job.asked


def test_another_program_on_the_card_is_no_reason_to_climb_the_first_time(story):
    other = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.LOAD, cause=Cause.OTHER_PROCESS)
    story.exit(other)
    again = story.free()
    assert again.spec.plan == story.record.job.asked
    story.launch(again)
    story.exit(other)
    assert story.free() != again


def test_a_job_that_says_nothing_for_too_long_is_stopped_and_has_failed():
    story = Story(limits=replace(LIMITS, hang_timeout_s=30.0))
    story.launch(story.begin())
    assert story.happen(Ticked(t=1000.0)) is None, "loading may take its time"
    story.happen(stepped(1, t=1000.0))
    assert story.happen(Ticked(t=1029.0)) is None
    assert story.happen(Ticked(t=1030.0)) == Stop(reason=StopReason.HANG)
    story.happen(Stopping(t=1030.0, attempt=1, reason=StopReason.HANG))
    action = story.exit(Verdict(kind=Kind.NOT_OOM), returncode=-15)
    assert action == Finish(status=Status.FAILED, reason="no progress from the job for 30 s")


@given(job=jobs, why=st.lists(failures, min_size=1, max_size=6))
def test_a_run_whose_every_attempt_runs_out_ends_exhausted_and_replays_to_the_same_record(job, why):
    story = Story(job=job)
    action = story.begin()
    while isinstance(action, Launch):
        story.launch(action)
        verdict = why[len(story.record.attempts) % len(why)]
        assert story.exit(verdict) == WaitForDevice()
        action = story.free()
    assert action.status is Status.EXHAUSTED
    story.happen(Finished(t=99, status=action.status, reason=action.reason, skipped=action.skipped))
    assert story.record.state is State.DONE
    again = [event_from_json(event_to_json(event)) for event in story.events]
    assert again == story.events
    assert replay(again) == story.record


def test_an_offload_that_the_host_has_no_room_for_is_left_out_and_the_climb_goes_on():
    asked = Plan(
        micro_batch=1,
        accumulation=1,
        tuning=Tuning.FULL,
        optimizer="adamw_torch",
        sharding=Sharding.NONE,
        offload=frozenset(),
        sequence_length=2048,
    )
    ladder = make_ladder(ladder="offload_optimizer,cut_cutoff_len")
    story = Story(job=make_job(asked), ladder=ladder)
    story.launch(story.begin())
    story.exit(OOM)
    offloaded = story.free()
    assert offloaded.spec.path == ("offload_optimizer",)
    story.launch(offloaded)
    story.exit(Verdict(kind=Kind.HOST_OOM, phase=Phase.OPTIMIZER))
    cut = story.free()
    assert cut.spec.path == ("cut_cutoff_len",)
    assert cut.spec.plan == replace(asked, sequence_length=1024)
    story.launch(cut)
    story.exit(OOM)
    again = story.free()
    assert again.spec.path == ("cut_cutoff_len", "cut_cutoff_len")
    assert {skip.strategy: skip.reason for skip in again.spec.skipped} == {
        "offload_optimizer": "taken already"
    }
