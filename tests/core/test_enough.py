"""A plan that is known to save too little is not tried; where anything is unsure, it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators import jobs, make_job, make_ladder
from oomguard.cli.console import Console
from oomguard.cli.report_page import Plots, page
from oomguard.estimate.correct import COUNTED_DOUBT, LEAST, MOST
from oomguard.estimate.memory import COUNTED, NOT_ALLOCATED, Term
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.plan import Plan, Quantization, Tuning
from oomguard.job.training_job import Device, Job
from oomguard.ladder.enumerate import walk
from oomguard.run.attempt import Purpose, StopReason
from oomguard.run.decide import Finish, Launch
from oomguard.run.enough import Lack, least_needed, least_share, too_little
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Finished,
    Limits,
    Planned,
    Predicted,
    Progress,
    RunStarted,
    Status,
    Stopping,
    event_from_json,
    event_to_json,
)
from oomguard.run.report import build
from told import Told

GIB = 1 << 30
LADDER = "halve_micro_batch,gradient_checkpointing,cut_cutoff_len,enable_qlora"
LORA = Plan(
    micro_batch=4, accumulation=1, sequence_length=1024, tuning=Tuning.LORA,
    quantization=Quantization.NONE, checkpointing=False,
)  # fmt: skip
#: Nearly all of the 20.5 GiB that were held when another failed are weights: 20 are predicted.
OOM = Finding(
    witness=Witness.INSIDE,
    kind=Kind.DEVICE_OOM,
    text="CUDA out of memory",
    phase=Phase.FORWARD,
    step=0,
    requested_bytes=GIB,
    capacity_bytes=int(19.5 * GIB),
    allocated_bytes=int(20.5 * GIB),
)


def predicted(plan: Plan, terms: dict[str, int], *, covers_all: bool = True) -> Predicted:
    size = sum(terms.values())
    return Predicted(
        plan=plan, allocated_bytes=size, reserved_bytes=size, expected_bytes=size,
        method="trace", terms=terms, covers_all=covers_all,
    )  # fmt: skip


def heavy(plan: Plan) -> dict[str, int]:
    """Return terms of which halving, checkpointing and cutting change only a twentieth."""
    tokens = plan.micro_batch * (plan.sequence_length or 0)
    weights = 6 if plan.is_quantized else 20
    return {"weights": weights * GIB, "activations": tokens * GIB // 4096}


@dataclass(kw_only=True)
class Run(Told):
    """A run whose attempts end as told; `terms` are those predicted for each plan of the walk."""

    job: Job = field(default_factory=lambda: make_job(LORA))
    terms: Callable[[Plan], dict[str, int]] | None = None
    covers_all: bool = True
    limits: dict[str, object] = field(default_factory=dict)

    def begin(self) -> Launch:
        limits = Limits(ladder=(), allow=self.ladder.allow, max_attempts=400, **self.limits)
        path = walk(self.job, self.ladder)
        plans = [path.first, *(rung.plan for rung in path.rungs if rung.plan)]
        known = [
            predicted(plan, self.terms(plan), covers_all=self.covers_all)
            for plan in plans
            if self.terms
        ]
        return self.happen(
            RunStarted(
                t=0, run="r", version="0", at="now", job=self.job, limits=limits,
                predicted=tuple(known),
            )
        )  # fmt: skip

    def ends(self, found: Finding) -> Launch | Finish:
        number = len(self.record.attempts)
        why = Verdict(
            kind=found.kind, phase=found.phase, cause=found.cause, evidence=(found,),
            requested_bytes=found.requested_bytes, phase_known=found.phase_known,
        )  # fmt: skip
        self.happen(Exited(t=2, attempt=number, returncode=1, verdict=why))
        return self.happen(DeviceFree(t=3, attempt=number, free=True, waited_s=0))

    def after(self, *found: Finding) -> Launch | Finish:
        action: Launch | Finish = self.begin()
        for one in found:
            self.launch(action)
            action = self.ends(one)
        return action

    def to_the_end(self, found: Finding) -> list[Plan]:
        """Return every plan that is launched where each ends like this."""
        action: Launch | Finish = self.begin()
        while isinstance(action, Launch):
            self.launch(action)
            action = self.ends(found)
        assert action.status is Status.EXHAUSTED
        return [attempt.spec.plan for attempt in self.record.attempts]


def run(**changes: object) -> Run:
    return Run(ladder=make_ladder(ladder=LADDER), **{"terms": heavy, **changes})


def names(action: Launch | Finish) -> list[str]:
    assert isinstance(action, Launch)
    return [step.strategy for step in action.spec.steps]


WALK = [
    *("halve_micro_batch", "halve_micro_batch", "gradient_checkpointing"),
    *("cut_cutoff_len", "cut_cutoff_len", "enable_qlora"),
]


def test_what_cannot_save_enough_is_not_launched_and_the_reason_is_recorded():
    action = run().after(OOM)
    assert names(action) == WALK
    assert action.spec.path == tuple(WALK)
    assert action.spec.plan.quantization is Quantization.NF4_DOUBLE
    assert [skip.strategy for skip in action.spec.not_launched] == WALK[:-1]
    # Of 21.49 GiB at least 19.8 are weights; of the 1.69 left, a quarter may stay after halving.
    assert action.spec.not_launched[0].reason == (
        "it can save at most 1.27 GiB of at least 1.99 GiB that are missing"
    )
    again = event_from_json(event_to_json(Planned(t=4, attempt=2, spec=action.spec)))
    assert again.spec == action.spec


def test_the_reason_is_on_the_screen_and_in_the_report(capfd):
    story = run()
    story.launch(story.after(OOM))
    Console(quiet_stdout=True).event(story.events[-2], story.record)
    line = "halve_micro_batch is not tried alone: it can save at most 1.27 GiB of"
    assert line in capfd.readouterr().err
    story.happen(Exited(t=5, attempt=2, returncode=0, verdict=Verdict(kind=Kind.OK)))
    story.happen(Finished(t=6, status=Status.FIT, reason="trained to completion"))
    report = build(story.record)
    assert report.attempts[1].spec.not_launched == story.record.last.spec.not_launched
    assert "halve_micro_batch: it can save at most 1.27 GiB" in page(report, Plots())


def test_what_was_not_tried_alone_is_no_trial_either():
    story = run(limits={"relax": True})
    story.launch(story.after(OOM))
    for step in (1, 2):
        story.happen(
            Progress(t=4, attempt=2, pid=7, rank=0, step=step, phase=Phase.OPTIMIZER)
        )  # fmt: skip
    story.happen(Stopping(t=4, attempt=2, reason=StopReason.FITS))
    story.happen(Exited(t=5, attempt=2, returncode=1, verdict=Verdict(kind=Kind.INTERRUPTED)))
    action = story.happen(DeviceFree(t=6, attempt=2, free=True, waited_s=0))
    assert action.spec.purpose is Purpose.TRIAL
    assert action.spec.undone == ("cut_cutoff_len",) * 2
    assert "enable_qlora" in action.spec.path


@pytest.mark.parametrize(
    "unsure",
    [
        {"allocated_bytes": None},
        {"capacity_bytes": None},
        {"requested_bytes": None},
        {"cause": Cause.FRAGMENTATION},
        {"cause": Cause.GROWTH},
        {"cause": Cause.OTHER_PROCESS},
        {"witness": Witness.LOG},
        {"phase_known": False},
        {"phase": Phase.UNKNOWN},
        {"capacity_bytes": 22 * GIB},  # what is missing is not known
        {"allocated_bytes": 40 * GIB},  # more than the estimate can explain
        {
            "allocated_bytes": 15 * GIB,
            "requested_bytes": int(4.7 * GIB),
        },  # less than the weights alone
    ],
)
def test_the_next_step_is_tried_where_anything_is_unsure(unsure):
    story = run()
    action = story.after(replace(OOM, **unsure))
    assert too_little(story.record, story.record.last, story.record.predicted[1].plan) is None
    assert action.spec.not_launched == ()
    same_again = unsure.get("cause") is Cause.OTHER_PROCESS
    assert names(action) == WALK[: 0 if same_again else 1]


@pytest.mark.parametrize("changes", [{"terms": None}, {"covers_all": False}])
def test_the_next_step_is_tried_without_a_whole_estimate(changes):
    assert names(run(**changes).after(OOM)) == WALK[:1]


def test_one_step_at_a_time_follows_several_that_the_framework_refused():
    story = run()
    story.launch(story.after(OOM))
    refused = Verdict(
        kind=Kind.NOT_OOM, root="ValueError: this is not compatible with 4-bit quantization"
    )
    story.happen(Exited(t=5, attempt=2, returncode=1, verdict=refused))
    action = story.happen(DeviceFree(t=6, attempt=2, free=True, waited_s=0))
    assert story.record.last.refused_step is not None
    assert names(action) == WALK[:1]


def test_where_nothing_is_enough_only_the_last_plan_is_tried():
    story = run(terms=lambda _: {"weights": 20 * GIB, "activations": GIB})
    action = story.after(OOM)
    assert names(action) == WALK
    assert len(action.spec.not_launched) == len(WALK) - 1
    assert action.spec.steps[-1].summary.endswith("so all of it is tried together")
    story.launch(action)
    assert story.ends(OOM).status is Status.EXHAUSTED


def test_an_allocation_that_no_smaller_batch_makes_small_enough_needs_no_estimate():
    huge = replace(
        OOM, kind=Kind.HOST_OOM, allocated_bytes=None, capacity_bytes=None,
        requested_bytes=100 * GIB,
    )  # fmt: skip
    job = make_job(replace(LORA, micro_batch=16), device=Device.CPU)
    caps = {"host_memory_bytes": GIB, "host_memory_by": "rlimit"}
    action = run(job=job, terms=None, limits=caps).after(huge)
    # 100 GiB are 25 at a half, 6.25 at a quarter, 1.56 at an eighth, if with the square of it.
    assert names(action) == ["halve_micro_batch"] * 4
    assert action.spec.plan.micro_batch == 1
    assert len(action.spec.not_launched) == 3
    assert names(run(job=job, terms=None).after(huge)) == ["halve_micro_batch"]  # no cap


sizes = st.integers(1, 64 * GIB)
TERMS = [term for term in Term if term not in NOT_ALLOCATED]


@st.composite
def truths(draw: st.DrawFn) -> tuple[Lack, Predicted, Predicted, float]:
    """Draw an estimate of two plans, and what both really need, within the doubts about it."""
    terms = draw(st.lists(st.sampled_from(TERMS), min_size=1, unique=True))
    held = frozenset(term for term in terms if term in COUNTED and draw(st.booleans()))
    before = {term: draw(sizes) for term in terms}
    after = {term: draw(st.integers(0, 2 * before[term])) for term in terms}
    doubt = {t: (1 - COUNTED_DOUBT, 1 + COUNTED_DOUBT) if t in COUNTED else (LEAST, MOST)
             for t in terms}  # fmt: skip
    least = {term: doubt[term][0] if term in held else 0.0 for term in terms}
    really = {t: before[t] * draw(st.floats(least[t], doubt[t][1])) for t in terms}
    shares = {t: min(1.0, after[t] / before[t]) for t in terms}
    left = sum(really[t] * (shares[t] * doubt[t][0] if shares[t] < 1 else 1) for t in terms)
    needed = int(sum(really.values()))
    lacked = Lack(needed_bytes=needed, failed_bytes=0, available_bytes=0, held=held)
    plan = Plan(micro_batch=1, accumulation=1)
    one, two = ({t.value: size for t, size in found.items()} for found in (before, after))
    return lacked, predicted(plan, one), predicted(plan, two), left


@given(truths())
def test_a_plan_that_fits_within_the_doubts_is_never_left_out(truth):
    lacked, before, after, really = truth
    least = least_needed(lacked, before, after)
    rounding = 2 * len(before.terms)
    assert least is None or least <= really + rounding


@given(truths(), st.integers(0, 1 << 40))
def test_a_plan_that_is_estimated_no_smaller_saves_nothing(truth, more):
    lacked, before, _, _ = truth
    larger = replace(before, terms={name: size + more for name, size in before.terms.items()})
    least = least_needed(lacked, before, larger)
    assert least is None or abs(least - lacked.needed_bytes) <= 2 * len(before.terms)


@given(
    st.integers(1, 96), st.integers(1, 96), st.integers(1, 1 << 15), st.integers(1, 1 << 15),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (0, 0)]),
)  # fmt: skip
def test_an_allocation_shrinks_at_most_with_the_square_of_samples_and_tokens(
    micro, smaller, long, shorter, powers
):
    before = Plan(micro_batch=micro, accumulation=1, sequence_length=long)
    after = Plan(
        micro_batch=min(micro, smaller), accumulation=2, sequence_length=min(long, shorter)
    )
    samples, tokens = powers
    really = (after.micro_batch / micro) ** samples * (after.sequence_length / long) ** tokens
    assert least_share(before, after) <= really * (1 + 1e-9)
    assert least_share(before, replace(after, checkpointing=True)) == 0


@given(job=jobs, data=st.data())
@settings(max_examples=40)
def test_what_is_launched_is_on_the_way_without_estimates_and_ends_where_that_does(job, data):
    job = replace(job, device=Device.CUDA)
    plain = Run(job=job, ladder=make_ladder()).to_the_end(OOM)

    def terms(_: Plan) -> dict[str, int]:
        return {name: data.draw(sizes) for name in ("weights", "activations", "optimizer")}

    weighed = Run(job=job, ladder=make_ladder(), terms=terms)
    launched = weighed.to_the_end(OOM)
    rest = iter(plain)
    assert all(plan in rest for plan in launched), "only plans of that way, in its order"
    assert launched[-1] == plain[-1], "the last that might fit is always tried"
    for attempt in weighed.record.attempts[1:]:
        steps = [step.strategy for step in attempt.spec.steps]
        assert [skip.strategy for skip in attempt.spec.not_launched] == steps[:-1]


def test_an_attempt_that_did_not_run_out_lacks_nothing():
    story = run()
    story.launch(story.begin())
    assert too_little(story.record, story.record.last, LORA) is None
