"""What was counted, compared with the plan: alarms name their cause, healthy jobs raise none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators import make_job, make_ladder
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import World
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.process.messages import LossReport, StepReport, TrainingReport
from oomguard.run import verification
from oomguard.run.attempt import StopReason
from oomguard.run.decide import Finish, Launch, Stop, WaitForDevice
from oomguard.run.epochs import batches, epoch
from oomguard.run.events import Counted, DeviceFree, Exited, Limits, RunStarted, Status, Stopping
from oomguard.run.observer import MOST_WINDOWS, Observer
from oomguard.run.verification import LOSS_TOLERANCE, Outcome
from reported import reported
from told import Told

WINDOW = {
    "samples": 16, "micro_batches": 1, "label_tokens": None, "label_sum": None, "sequences": None,
    "learning_rate": 0.1, "short": False, "counted_by": "trainer", "unclear": None,
}  # fmt: skip
LADDERS = {allow: make_ladder(allow, "halve_micro_batch") for allow in Fidelity}
OOM = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
OK = Verdict(kind=Kind.OK)


@dataclass(kw_only=True)
class Story(Told):
    """A run at 16 x 1 whose first attempt runs out of memory, if `climbs`."""

    job: object = None
    allow: Fidelity = Fidelity.NEW_RECIPE

    def begin(self, training: dict[str, object] | None = None, *, climbs: bool = True):
        limits = Limits(ladder=("halve_micro_batch",), allow=self.allow, max_attempts=9)
        self.ladder = LADDERS[self.allow]
        started = RunStarted(
            t=0, run="r", version="0", at="2026-01-01T00:00:00Z", job=self.job or make_job(),
            limits=limits,
        )  # fmt: skip
        self.launch(self.happen(started))
        if training is not None:
            self.train(**training)
        if climbs:
            self.exit(OOM)
            action = self.free()
            if isinstance(action, Launch):
                self.launch(action)
            return action
        return None

    def count(self, rank: int | None = None, world: int | None = None, step: int = 1, **window):
        report = reported("step", window={**WINDOW, **window}).report
        assert isinstance(report, StepReport)
        return self.happen(self._counted(rank, world, step, window=report.window))

    def train(self, **fields):
        report = reported("training", **fields).report
        assert isinstance(report, TrainingReport)
        return self.happen(self._counted(None, None, 0, training=report))

    def lose(self, **fields):
        report = reported("loss", **fields).report
        assert isinstance(report, LossReport)
        return self.happen(self._counted(None, None, 1, loss=report))

    def _counted(self, rank, world, step, **what):
        number = len(self.record.attempts)
        return Counted(t=5.0, attempt=number, pid=7, rank=rank, world=world, step=step, **what)

    def stop(self, reason):
        number = len(self.record.attempts)
        return self.happen(Stopping(t=6.0, attempt=number, reason=reason))

    def exit(self, verdict):
        number = len(self.record.attempts)
        return self.happen(Exited(t=9.0, attempt=number, returncode=1, verdict=verdict))

    def free(self):
        number = len(self.record.attempts)
        return self.happen(DeviceFree(t=9.5, attempt=number, free=True, waited_s=0.0))

    @property
    def samples(self):
        return verification.verify(self.record).samples_per_step


def at_half(**fields) -> Story:
    """Return a run whose second attempt, at 8 x 2, is running."""
    story = Story(**fields)
    story.begin()
    return story


@pytest.mark.parametrize(
    ("observed", "cause"),
    [
        (8, "ignores the setting for gradient accumulation"),
        (32, "ignores the setting for its micro batch"),
        (7, "does not follow the settings"),
    ],
)
def test_the_first_full_step_that_differs_ends_the_attempt_and_the_run(observed, cause):
    story = at_half()
    assert story.count(samples=observed) == Stop(reason=StopReason.DIFFERS)
    story.stop(StopReason.DIFFERS)
    ended = story.exit(Verdict(kind=Kind.INTERRUPTED))
    assert isinstance(ended, Finish)
    assert ended.status is Status.FAILED
    assert "samples per optimizer step: expected 16" in ended.reason
    assert f"observed {observed} in step 1" in ended.reason
    assert cause in ended.reason


def test_an_accumulation_that_is_applied_twice_is_named():
    story = Story(job=make_job(Plan(micro_batch=16, accumulation=2)))
    story.begin()
    story.count(samples=128)
    assert "the accumulation is applied twice" in story.samples.reason


def test_a_job_that_ends_before_it_is_stopped_has_not_trained_as_planned():
    story = at_half()
    story.count(samples=8)
    assert story.exit(OK).status is Status.FAILED


def test_the_error_of_the_job_itself_comes_first():
    story = at_half()
    story.count(samples=8)
    ended = story.exit(Verdict(kind=Kind.NOT_OOM, root="ValueError: no"))
    assert (ended.status, ended.reason) == (Status.FAILED, "ValueError: no")


HEALTHY = {
    "a full step": {},
    "a short last window": {"samples": 4, "short": True},
    "rows whose samples are unknown": {"samples": 32, "counted_by": "rows"},
    "several loaders": {"samples": None, "counted_by": None, "unclear": "two loaders"},
    "a second optimizer": {"samples": None, "micro_batches": 1, "counted_by": None},
}


@pytest.mark.parametrize("window", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_step_is_not_an_alarm(window):
    story = at_half()
    assert story.count(**window) is None
    assert story.exit(OK) == Finish(status=Status.FIT, reason="trained to completion")
    assert story.samples.outcome is (Outcome.NOT_VERIFIED if window else Outcome.VERIFIED)
    assert story.samples.reason


def test_generated_batches_are_not_compared():
    story = Story(job=make_job(group=4))
    story.begin()
    assert story.count(samples=64) is None
    assert "generated" in story.samples.reason


def test_a_trainer_that_searches_its_batch_itself_is_not_compared():
    story = Story()
    story.begin(climbs=False)
    story.count(samples=8)
    attempt = story.record.last
    plan = replace(attempt.spec.plan, auto_find_batch_size=True)
    searching = replace(attempt, spec=replace(attempt.spec, plan=plan))
    check = verification.samples_check(searching, make_job())
    assert check.outcome is Outcome.NOT_VERIFIED
    assert "auto_find_batch_size" in check.reason


@pytest.mark.parametrize(
    ("world", "size", "samples", "outcome"),
    [
        (2, 2, 16, Outcome.VERIFIED),
        (None, 2, 32, Outcome.VERIFIED),  # DataParallel: one process for both GPUs
        (2, 1, 16, Outcome.NOT_VERIFIED),  # tensor parallel: each takes the same samples
        (2, 2, 8, Outcome.DIFFERS),
    ],
)
def test_samples_are_those_of_all_ranks(world, size, samples, outcome):
    story = at_half(job=make_job(world=World(per_node=size)))
    for rank in range(world or 1):
        story.count(rank=rank, world=world, samples=samples)
    assert story.samples.outcome is outcome


def test_the_users_own_command_is_never_stopped_for_being_read_wrongly():
    story = Story()
    story.begin(climbs=False)
    assert story.count(samples=8) is None
    assert story.samples.outcome is Outcome.DIFFERS
    assert story.exit(OK).status is Status.FIT


def test_but_nothing_is_changed_in_it_either():
    story = Story()
    story.begin(climbs=False)
    story.count(samples=8)
    ended = story.exit(OOM)
    assert ended.status is Status.FAILED
    assert "flag is abbreviated" in ended.reason


@pytest.mark.parametrize("by", ["trainer", "loader"])
def test_the_first_micro_batch_is_enough_to_see_a_wrong_reading(by):
    story = Story()
    story.begin({"samples": 24, "short": False, "counted_by": by}, climbs=False)
    ended = story.exit(OOM)
    assert ended.status is Status.FAILED
    assert "expected 16, observed 24" in ended.reason


@pytest.mark.parametrize(
    "training",
    [
        {"samples": 16, "short": False, "counted_by": "trainer"},
        {"samples": 64, "short": False, "counted_by": "loader"},  # divided by the loop itself
        {"samples": 4, "short": True, "counted_by": "trainer"},
        {"samples": 64, "short": False, "counted_by": "rows"},
    ],
)
def test_a_first_micro_batch_that_may_be_right_is_not_an_alarm(training):
    story = Story()
    assert isinstance(story.begin(training), Launch)


def test_a_micro_batch_that_does_not_follow_a_change_ends_the_run():
    story = Story()
    known = {"samples": 16, "short": False, "counted_by": "trainer"}
    story.begin(known)
    story.train(**known)
    ended = story.exit(OOM)
    assert ended.status is Status.FAILED
    assert "ignores the setting for its micro batch" in ended.reason


def test_a_batch_that_shrank_after_an_oom_ends_even_the_requested_plan():
    story = Story()
    story.begin({"samples": 16, "short": False, "counted_by": "forward"}, climbs=False)
    action = story.count(samples=14, counted_by="forward")
    assert action == Stop(reason=StopReason.DIFFERS)
    assert "find_executable_batch_size" in story.samples.reason


def test_a_coupled_loss_makes_the_change_a_new_recipe():
    story = at_half()
    assert story.lose(value=2.0, couplings=["in_batch"]) is None
    assert verification.not_same_math(story.record, story.record.last.spec.plan)
    assert verification.verify(story.record).first_loss.outcome is Outcome.DIFFERS


def test_where_only_same_math_is_allowed_it_is_climbed_without_the_change():
    story = at_half(allow=Fidelity.SAME_MATH)
    assert story.lose(value=2.0, couplings=["batch_norm"]) == Stop(reason=StopReason.NOT_SAME_MATH)
    story.stop(StopReason.NOT_SAME_MATH)
    assert story.exit(Verdict(kind=Kind.INTERRUPTED)) == WaitForDevice()
    ended = story.free()
    assert ended.status is Status.EXHAUSTED
    assert "is a new recipe here (batch norm" in ended.skipped[0].reason


def test_a_coupling_seen_before_the_change_is_known_when_it_is_made():
    story = Story()
    story.begin(climbs=False)
    story.lose(value=2.0, couplings=["ignores_num_items"])
    story.exit(OOM)
    (step,) = story.free().spec.steps
    assert step.fidelity is Fidelity.NEW_RECIPE
    assert "num_items_in_batch" in step.summary


@settings(max_examples=25)
@given(st.floats(-100, 100), st.floats(-100, 100), st.booleans())
def test_losses_of_the_first_step_are_compared_on_the_same_samples(before, after, same):
    story = Story()
    story.begin(climbs=False)
    story.lose(value=before, label_sum=5)
    story.exit(OOM)
    story.launch(story.free())
    story.lose(value=after, label_sum=5 if same else 6)
    check = verification.verify(story.record).first_loss
    close = abs(after - before) <= LOSS_TOLERANCE * abs(before)
    expected = Outcome.VERIFIED if close else Outcome.DIFFERS
    assert check.outcome is (expected if same else Outcome.NOT_VERIFIED)
    broken = verification.not_same_math(story.record, story.record.last.spec.plan)
    assert (broken is not None) == (check.outcome is Outcome.DIFFERS)


TRAINER = {"counted_by": "trainer", "samples": 16, "short": False, "drop_last": True}


@pytest.mark.parametrize(
    ("samples", "total", "is_new"),
    [(108, 12, True), (100, 12, False), (96, 6, False), (108, 3, False)],
)
def test_other_steps_in_an_epoch_are_predicted_before_the_change(samples, total, is_new):
    story = Story()
    known = {"dataset_samples": samples, "batches": samples // 16, "total_steps": total}
    action = story.begin({**TRAINER, **known})
    (step,) = action.spec.steps
    assert step.fidelity is (Fidelity.NEW_RECIPE if is_new else Fidelity.SAME_MATH)
    assert ("7 optimizer steps" in step.summary) == is_new


def test_nothing_is_predicted_from_a_loader_that_is_not_understood():
    story = Story()
    known = {"dataset_samples": 108, "batches": 54, "total_steps": 12}
    (step,) = story.begin({**TRAINER, **known}).spec.steps
    assert step.fidelity is Fidelity.SAME_MATH


@pytest.mark.parametrize(("total", "warmup"), [(14, 1), (12, 2)])
def test_other_total_or_warm_up_steps_are_a_new_recipe(total, warmup):
    story = Story()
    known = {**TRAINER, "drop_last": None}
    story.begin({**known, "total_steps": 12, "warmup_steps": 1})
    story.train(**{**known, "samples": 8, "total_steps": total, "warmup_steps": warmup})
    assert verification.verify(story.record).total_steps.outcome is Outcome.DIFFERS
    broken = verification.not_same_math(story.record, story.record.last.spec.plan)
    assert "warm-up" in broken


@given(
    samples=st.integers(1, 200),
    micro=st.integers(1, 20),
    accumulation=st.integers(1, 6),
    world=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_an_epoch_is_what_a_trainer_makes_of_its_batches(
    samples, micro, accumulation, world, drop_last
):
    sizes = [len(range(at, min(at + micro, samples))) for at in range(0, samples, micro)]
    if drop_last:
        sizes = [size for size in sizes if size == micro]
        sizes = sizes[: len(sizes) // world * world]
    mine = sizes[::world]  # of rank 0, which has the most
    assert batches(samples, micro, world, drop_last=drop_last) == len(mine)
    windows = [mine[at : at + accumulation] for at in range(0, len(mine), accumulation)]
    plan = Plan(micro_batch=micro, accumulation=accumulation)
    found = epoch(samples, plan, world, drop_last=drop_last)
    assert found.steps == max(1, len(windows))
    if windows and (drop_last or world == 1):
        assert found.last_samples == sum(windows[-1]) * world


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 4), st.data())
def test_a_job_that_follows_every_plan_is_verified_whatever_its_batch(micro, k, ranks, data):
    job = make_job(Plan(micro_batch=micro, accumulation=k), world=World(per_node=ranks))
    story = Story(job=job)
    story.begin()
    world = ranks if ranks > 1 else None
    for rank in data.draw(st.permutations(range(ranks))):
        assert story.count(rank=rank, world=world, samples=micro * k) is None
    assert story.samples.outcome is Outcome.VERIFIED
    assert story.samples.observed == job.global_batch


def test_windows_are_recorded_when_they_change_and_not_without_end():
    observer = Observer(1)
    same = [reported("step", step=at, window=WINDOW) for at in range(1, 50)]
    other = [reported("step", step=50 + at, window={**WINDOW, "samples": at}) for at in range(50)]
    found = [event for one in (*same, *other) for event in observer.take(one, 1.0)]
    counted = [event for event in found if isinstance(event, Counted)]
    assert [event.step for event in counted[:3]] == [1, 2, 50]
    assert len(counted) == MOST_WINDOWS
