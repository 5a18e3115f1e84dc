"""Probes: what they are asked for, and what follows them, by event histories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from generators import make_job, make_ladder
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import BY_TOKENIZER, Lengths
from oomguard.ladder.climb import Ladder
from oomguard.run.attempt import PROBE_STEPS, AttemptSpec, Probe, Purpose, StopReason, probe_of
from oomguard.run.decide import (
    Finish,
    Launch,
    Stop,
    WaitForDevice,
)
from oomguard.run.events import (
    CutShort,
    DeviceFree,
    Exited,
    Limits,
    Predicted,
    Probed,
    Progress,
    RunStarted,
    Signalled,
    Status,
    Stopping,
    Ticked,
    event_from_json,
    event_to_json,
)
from oomguard.run.report import build
from oomguard.run.state import PROBE_LINGERS_S, replay
from told import Told

OOM = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.BACKWARD)
OK = Verdict(kind=Kind.OK)
FAILED = Verdict(kind=Kind.NOT_OOM, root="ValueError: no such flag")
STOPPED = Verdict(kind=Kind.INTERRUPTED)
ASKED = Plan(micro_batch=8, accumulation=1, sequence_length=4096)
PROBE = Probe(steps=PROBE_STEPS, tokens=4096)
GIB = 1 << 30


@dataclass(kw_only=True)
class Story(Told):
    relax: bool = False
    ladder: Ladder = field(default_factory=lambda: make_ladder(ladder="halve_micro_batch"))

    def begin(self):
        limits = Limits(
            ladder=tuple(one.id for one in self.ladder.strategies), allow=self.ladder.allow,
            max_attempts=20,
            relax=self.relax, probe=True,
        )  # fmt: skip
        predicted = Predicted(
            plan=ASKED, allocated_bytes=20 * GIB, reserved_bytes=21 * GIB, expected_bytes=22 * GIB,
            method="trace",
        )  # fmt: skip
        return self.happen(
            RunStarted(
                t=0,
                run="r",
                version="0",
                at="2026-01-01T00:00:00Z",
                job=make_job(ASKED),
                limits=limits,
                predicted=(predicted,),
            )
        )

    def steps(self, count=PROBE_STEPS, t=2.0):
        number = len(self.record.attempts)
        for step in range(1, count + 1):
            self.happen(
                Progress(
                    t=t,
                    attempt=number,
                    pid=7,
                    rank=None,
                    step=step,
                    phase=Phase.FORWARD,
                    device_bytes=19 * GIB,
                    reserved_bytes=20 * GIB,
                )
            )

    def probed(self, t=2.0):
        self.steps(t=t)
        return self.happen(
            Probed(t=t, attempt=len(self.record.attempts), pid=7, rank=None, longest=4096)
        )

    def end(self, verdict):
        waits = self.happen(
            Exited(t=9.0, attempt=len(self.record.attempts), returncode=0, verdict=verdict)
        )
        if waits != WaitForDevice():
            return waits
        number = len(self.record.attempts)
        return self.happen(DeviceFree(t=10.0, attempt=number, free=True, waited_s=0.1))


@pytest.fixture
def story():
    story = Story()
    story.launch(story.begin())
    return story


def test_what_was_asked_is_probed_before_it_runs():
    assert Story().begin() == Launch(spec=AttemptSpec(plan=ASKED, probe=PROBE))


def test_after_a_probe_that_passed_its_plan_runs(story):
    assert story.probed() is None
    spec = AttemptSpec(plan=ASKED, begins=story.end(OK).spec.begins)
    assert story.end(OK) == Launch(spec=spec)
    assert story.end(OK).spec.begins.checkpoint is None


def test_a_probe_that_runs_out_leads_to_the_next_rungs_probe_and_that_to_its_run(story):
    action = story.end(OOM)
    assert (action.spec.plan.micro_batch, action.spec.probe, action.spec.path) == (
        4,
        PROBE,
        ("halve_micro_batch",),
    )
    story.launch(action)
    story.probed()
    action = story.end(OK)
    assert (action.spec.plan.micro_batch, action.spec.probe, action.spec.path) == (
        *(4, None), ("halve_micro_batch",),
    )  # fmt: skip
    story.launch(action)
    story.steps(9)
    assert story.end(OK) == Finish(status=Status.FIT, reason="trained to completion")


def test_a_run_that_runs_out_all_the_same_goes_on_without_probes(story):
    story.probed()
    story.launch(story.end(OK))
    story.steps(9)
    action = story.end(OOM)
    assert (action.spec.plan.micro_batch, action.spec.probe) == (4, None)


@pytest.mark.parametrize("verdict", [FAILED, OK])
def test_a_probe_that_shows_nothing_leaves_it_to_the_run(story, verdict):
    action = story.end(verdict)
    assert action == Launch(spec=AttemptSpec(plan=ASKED))
    story.launch(action)
    assert story.end(FAILED) == Finish(status=Status.FAILED, reason=FAILED.root)


def test_a_rank_that_runs_out_after_another_has_passed_counts(story):
    story.probed()
    assert story.end(OOM).spec.plan.micro_batch == 4


def test_a_process_that_fails_on_its_way_out_has_passed_before(story):
    story.probed()
    assert story.end(FAILED).spec.probe is None


def test_a_probe_that_does_not_end_is_ended(story):
    story.probed(t=2.0)
    assert story.happen(Ticked(t=2.0 + PROBE_LINGERS_S - 1)) is None
    assert story.happen(Ticked(t=2.0 + PROBE_LINGERS_S)) == Stop(reason=StopReason.PROBED)
    story.happen(Stopping(t=40.0, attempt=1, reason=StopReason.PROBED))
    action = story.end(STOPPED)
    assert (action.spec.plan, action.spec.probe) == (ASKED, None)


def test_a_probe_that_is_cut_short_with_its_supervisor_begins_again(story):
    story.steps(1)
    story.happen(CutShort(t=5.0, attempt=1, verdict=STOPPED))
    action = story.happen(DeviceFree(t=6.0, attempt=1, free=True, waited_s=0.0))
    assert (action.spec.plan, action.spec.probe) == (ASKED, PROBE)


def test_a_signal_during_a_probe_ends_the_run(story):
    assert story.happen(Signalled(t=2.0, signum=15)) == Stop(reason=StopReason.SIGNAL)
    story.happen(Stopping(t=2.0, attempt=1, reason=StopReason.SIGNAL))
    story.probed()
    assert story.end(OK).status is Status.INTERRUPTED


@pytest.mark.parametrize(("longest", "purpose"), [(2048, Purpose.TRAIN), (256, Purpose.BEST)])
def test_less_change_is_tried_by_probes_and_the_best_runs(longest, purpose):
    story = Story(relax=True, ladder=make_ladder(ladder="cut_cutoff_len,halve_micro_batch"))
    action = story.begin()
    seen = []
    while isinstance(action, Launch):
        story.launch(action)
        plan = action.spec.plan
        seen.append(
            (plan.micro_batch, plan.sequence_length, action.spec.purpose, action.spec.probe)
        )
        fits = plan.micro_batch <= 4 and plan.sequence_length <= longest
        if fits and action.spec.probe:
            story.probed()
        action = story.end(OK if fits else OOM)
    assert action.status is Status.FIT
    assert all(probe for *_, why, probe in seen if why is Purpose.TRIAL)
    assert [one for one in seen if one[3] is None] == [(4, longest, purpose, None)]


def test_events_are_written_and_read_back_and_the_report_compares(story):
    story.probed()
    story.launch(story.end(OK))
    story.happen(Exited(t=20.0, attempt=2, returncode=0, verdict=OK))
    written = [event_from_json(event_to_json(event)) for event in story.events]
    assert replay(written) == story.record
    record = replace(story.record, status=Status.FIT)
    report = build(record)
    first, second = report.attempts
    assert (first.spec.probe, second.spec.probe) == (PROBE, None)
    assert first.longest_batch == 4096
    assert (first.predicted.allocated_bytes, first.device_peak_bytes) == (20 * GIB, 19 * GIB)


def lengths(longest, counted_by=BY_TOKENIZER, **fields):
    return Lengths(
        samples=2, sorted_tokens=(10, longest), counted_by=counted_by, at_most=longest + 64,
        **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "known", "tokens"),
    [
        (4096, None, 4096),
        (4096, lengths(9000), 4096),
        (4096, lengths(1000), 1064),
        (4096, lengths(1000, "a guess"), 4096),
        (4096, lengths(1000, filled=True), 4096),
        (None, lengths(1000), 1000),
        (None, None, None),
    ],
)
def test_batches_are_lengthened_to_the_limit_or_to_the_longest_sample(limit, known, tokens):
    job = make_job(lengths=known)
    plan = Plan(micro_batch=1, accumulation=1, sequence_length=limit)
    assert probe_of(job, plan) == Probe(steps=PROBE_STEPS, tokens=tokens)


def test_of_media_the_limit_alone_is_known():
    job = make_job(lengths=lengths(1000), multimodal=True)
    assert probe_of(job, ASKED).tokens == 4096
