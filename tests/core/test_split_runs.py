"""What a run makes of the monitor's split reports: events, record, ladder and final plan."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import make_job, make_ladder
from oomguard.evidence.verdict import Cause, Kind, Phase, Verdict
from oomguard.job.checkpoint import Checkpoint
from oomguard.job.plan import Plan
from oomguard.job.training_job import Lengths
from oomguard.process.messages import AnyReport, Report
from oomguard.run.attempt import AttemptSpec, StopReason
from oomguard.run.decide import Finish, Launch, Stop, decide
from oomguard.run.events import (
    Counted,
    DeviceFree,
    Exited,
    Growing,
    Limits,
    Noticed,
    NotSplit,
    Planned,
    RunStarted,
    Saved,
    Split,
    Started,
)
from oomguard.run.final_plan import plan_that_fits
from oomguard.run.observer import Observer
from oomguard.run.report import highest_cost
from oomguard.run.splits import (
    RECENT,
    SplitStep,
    SplitTally,
    halvings,
    split_variant,
    without_splits,
)
from oomguard.run.state import RunRecord, replay
from oomguard.strategy import SAME_MATH, Fidelity
from oomguard.units import GIB, MIB
from reported import on_card, reported

HEAD = {"v": 1, "pid": 7, "rank": None, "local_rank": None, "world": None, "t": 1.0, "step": 3}
OOM = {
    **HEAD, "type": "oom", "phase": "forward", "exception": "RuntimeError",
    "message": "CUDA out of memory", "uncaught": False, "frames": [], "memory": None,
    "shapes": None, "device": "cuda", "requested_bytes": 5, "capacity_bytes": None,
}  # fmt: skip
SPLIT = {
    **HEAD, "type": "split", "phase": "forward", "steps": 1, "failed": 2, "parts": 4, "rows": 4,
    "width": 256, "tokens": 4096, "seconds": 2.25,
}  # fmt: skip


def report(fields: dict[str, object]) -> Report:
    return Report(report=msgspec.convert(fields, AnyReport), line=b"")


def story(*events: object, micro: int = 16) -> RunRecord:
    limits = Limits(ladder=("halve_micro_batch",), allow=SAME_MATH, max_attempts=9, in_place=True)
    plan = Plan(micro_batch=micro, accumulation=1)
    begun = [
        RunStarted(t=0, run="r", version="0", at="now", job=make_job(plan), limits=limits),
        Planned(t=0, attempt=1, spec=AttemptSpec(plan=plan)),
        Started(t=0, attempt=1, pid=7, command="", kernel_watched=False),
    ]
    return replay([*begun, *events])


@pytest.mark.parametrize(
    ("drop_last", "cost"), [(True, Fidelity.NEW_RECIPE), (False, Fidelity.SAME_MATH)]
)
def test_a_final_config_with_other_steps_in_an_epoch_is_a_new_recipe(drop_last, cost):
    """Its 26 batches of 4 make 7 steps where 6 were requested, of which two are short."""
    training = reported(
        "training", dataset_samples=108, batches=6 if drop_last else 7, drop_last=drop_last,
        total_steps=6 if drop_last else 7, accumulation=1,
    ).report  # fmt: skip
    record = story(
        Counted(t=1, attempt=1, pid=7, rank=None, world=None, step=0, training=training),
        Split(
            t=2,
            attempt=1,
            pid=7,
            rank=None,
            step=1,
            steps=1,
            failed=1,
            parts=4,
            rows=4,
            width=256,
            tokens=4096,
            seconds=1.0,
        ),
    )
    assert plan_that_fits(record).micro_batch == 4
    assert highest_cost(record) is cost


def test_an_error_that_a_split_answered_is_not_the_jobs_end():
    observer = Observer(1)
    seen = [*observer.take(report(OOM), 1.0), *observer.take(report(SPLIT), 2.0)]
    (noticed,) = [event for event in seen if isinstance(event, Noticed)]
    assert noticed.finding.handled
    (split,) = [event for event in seen if isinstance(event, Split)]
    assert (split.step, split.failed, split.seconds) == (4, 2, 2.25)
    record = story(*seen)
    assert decide(record, split, make_ladder()) is None
    assert record.last.concluded(0).kind is Kind.OK


def test_one_that_nothing_answered_is():
    observer = Observer(1)
    seen = [
        *observer.take(report(OOM), 1.0),
        *observer.take(report({**OOM, "uncaught": True}), 2.0),
    ]
    record = story(*seen)
    assert record.last.concluded(1).kind is Kind.DEVICE_OOM
    assert decide(record, seen[-1], make_ladder()) is not None


def split_step(**fields: object) -> SplitStep:
    values = {
        "step": 1, "rank": None, "failed": 1, "parts": 2, "rows": 4, "width": 256, "tokens": 4096,
        "seconds": 1.0, **fields,
    }  # fmt: skip
    return SplitStep(**values)  # type: ignore[arg-type]


def test_the_widest_batch_decides_and_of_it_the_most_rows_that_passed():
    tally = SplitTally()
    for number, step in enumerate(
        (
            split_step(),
            split_step(rows=1, width=900, failed=0),
            split_step(rows=2, width=900),
            split_step(rows=1, width=900),
            split_step(rows=8, width=64),
        )
    ):
        tally = tally.with_step(replace(step, step=number), ((number, number),))
    splits = tally.splits
    assert (splits.rows, splits.width) == (2, 900)
    assert (splits.steps, splits.failed, splits.seconds) == (5, 4, 5.0)
    assert len(splits.at) == 4


def passed_in(*steps: SplitStep) -> tuple[int, int, int]:
    """Return rows, width and step of what passes at once after these steps."""
    tally = SplitTally()
    for step in steps:
        tally = tally.with_step(step, [(step.step, step.step)])
    return tally.splits.rows, tally.splits.width, tally.splits.last


def test_what_runs_out_later_does_not_pass_any_more():
    """The first step passes before the optimizer has its states; the next ones show what fits."""
    first = split_step(step=1, rows=8, refused=4096)
    assert passed_in(first, split_step(step=2, rows=4, refused=2048)) == (4, 256, 2)
    narrower = split_step(step=2, rows=8, width=128, refused=2048)
    assert passed_in(first, narrower) == (4, 256, 2)  # as many tokens as passed
    whole = split_step(step=2, rows=8, width=128, refused=4096)
    assert passed_in(first, whole) == (8, 256, 1)  # a larger batch: no contradiction
    wider = split_step(step=2, rows=1, width=900, refused=1800)
    assert passed_in(first, wider) == (1, 900, 2)


def test_it_passes_on_every_rank_that_divided_so_wide_a_batch():
    wide = split_step(rank=0, rows=8), split_step(rank=1, rows=2, step=3)
    assert passed_in(*wide) == (2, 256, 3)
    assert passed_in(*wide, split_step(rank=2, rows=1, width=64, step=4)) == (2, 256, 3)
    assert passed_in(*wide, split_step(rank=1, rows=8, step=5)) == (8, 256, 1)


@given(
    st.lists(st.tuples(st.integers(1, 32), st.integers(1, 999), st.integers(0, 9000)), min_size=1)
)
def test_nothing_that_ran_out_since_is_said_to_pass(seen):
    steps = [
        split_step(step=step, rows=rows, width=width, refused=max(refused, rows * width + 1))
        for step, (rows, width, refused) in enumerate(seen, 1)
    ]
    rows, width, last = passed_in(*steps)
    assert width == max(step.width for step in steps)
    later = [step.refused for step in steps[last:] if step.refused]
    assert all(rows * width < refused for refused in later) or rows == 1


def split_by(rank: int, step: int, seconds: float, *spans: tuple[int, int]) -> Split:
    """Return the report of a rank: without `spans`, one of an older version, of one step."""
    return Split(
        t=2, attempt=1, pid=rank, rank=rank, step=step, failed=int(seconds > 0), parts=2, rows=4,
        steps=sum(last - first + 1 for first, last in spans) or 1, width=256, tokens=4096,
        seconds=seconds, spans=spans,
    )  # fmt: skip


def test_a_step_that_two_ranks_split_counts_once_with_the_seconds_of_the_slower_one():
    splits = story(
        split_by(0, 1, 2.0, (1, 1)),
        split_by(1, 1, 3.0, (1, 1)),
        split_by(1, 4, 0.5, (4, 4)),
        split_by(0, 9, 0.0, (2, 2), (8, 9)),
        split_by(1, 9, 0.0, (5, 5), (7, 8)),
    ).last.splits
    assert splits is not None
    assert splits.steps == len({1, 2, 4, 5, 7, 8, 9})
    assert (splits.failed, splits.seconds) == (3, 3.5)
    assert [(one.step, one.rank) for one in splits.at] == [(1, 0), (1, 1), (4, 1)]


def test_two_ranks_that_evaluate_lose_the_seconds_of_the_slower_one():
    seen = [
        replace(split_by(rank, 5, seconds, (5, 5)), evaluation=True)
        for rank, seconds in ((0, 1.0), (1, 2.5), (0, 2.0))
    ]
    splits = story(*seen, split_by(0, 5, 1.0, (5, 5))).last.splits
    assert splits is not None
    assert (splits.steps, splits.failed, splits.seconds) == (1, 4, 3.0 + 1.0)


def test_steps_in_a_log_of_an_older_version_count_as_those_before_the_last():
    older = replace(split_by(0, 9, 0.0), steps=3)
    splits = story(split_by(0, 1, 2.0), older, split_by(1, 8, 1.0)).last.splits
    assert splits is not None
    assert (splits.steps, splits.seconds) == (len({1, 7, 8, 9}), 3.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(1, 40), min_size=1)), min_size=1))
def test_the_steps_of_any_reports_of_any_ranks_are_counted_once(reports):
    tally = SplitTally()
    for rank, steps in reports:
        tally = tally.with_step(
            split_step(rank=rank, step=max(steps)), [(one, one) for one in sorted(steps)]
        )
    assert tally.splits.steps == len(set().union(*(steps for _, steps in reports)))


def test_of_any_number_of_reports_all_steps_are_counted_and_few_spans_are_kept():
    """Two ranks split every second step of a long run; the second one reports later."""
    tally = SplitTally()
    for begin in range(0, 40_000, 80):
        for rank in (0, 1):
            spans = [(step, step) for step in range(begin + rank, begin + 80, 4)]
            tally = tally.with_step(split_step(rank=rank, step=begin + 80, seconds=0.0), spans)
    assert tally.splits.steps == 20_000
    assert len(tally.spans) <= RECENT


def test_a_batch_of_an_evaluation_makes_only_the_evaluation_smaller():
    observer = Observer(1)
    observer_events = [
        *observer.take(report(OOM), 1.0),
        *observer.take(report({**SPLIT, "rows": 3, "evaluation": True}), 2.0),
    ]
    (split,) = [event for event in observer_events if isinstance(event, Split)]
    assert split.evaluation
    record = story(*observer_events)
    assert record.last.concluded(0).kind is Kind.OK
    splits = record.last.splits
    assert splits is not None
    assert (splits.steps, splits.rows, splits.failed) == (0, 0, 2)
    whole = without_splits(Plan(micro_batch=16, accumulation=1, eval_batch=8), splits)
    assert (whole.micro_batch, whole.eval_batch) == (16, 3)
    assert (
        without_splits(Plan(micro_batch=16, accumulation=1, eval_batch=2), splits).eval_batch == 2
    )
    assert without_splits(Plan(micro_batch=16, accumulation=1), splits).eval_batch is None


@given(st.integers(1, 96), st.integers(1, 16), st.integers(1, 96))
def test_the_plan_without_splits_keeps_the_global_batch(micro, accumulation, rows):
    plan = Plan(micro_batch=micro, accumulation=accumulation)
    splits = SplitTally().with_step(split_step(rows=rows), [(1, 1)]).splits
    whole = without_splits(plan, splits)
    assert whole.rank_batch == plan.rank_batch
    assert whole.micro_batch <= max(1, min(rows, micro))
    taken = make_ladder().retake(make_job(plan), halvings(plan, whole))
    assert taken is not None
    assert taken[0].micro_batch <= whole.micro_batch


def test_both_ways_to_train_are_reported_where_few_steps_did_not_fit():
    plan = Plan(micro_batch=16, accumulation=1)
    few = SplitTally().with_step(split_step(rows=1, width=900), [(1, 3)]).splits
    variant = split_variant(plan, without_splits(plan, few), few, 300)
    assert variant is not None
    assert variant.plan == plan
    assert (variant.split_steps, variant.passes, variant.final_passes) == (3, 1, 16)
    assert split_variant(plan, without_splits(plan, few), few, 5) is None  # most steps need it
    fewer = SplitTally().with_step(split_step(rows=12), [(1, 1)]).splits
    assert split_variant(plan, without_splits(plan, fewer), fewer, 300) is not None
    assert split_variant(plan, plan, None, 300) is None


@given(
    st.integers(1, 96),
    st.integers(1, 16),
    st.integers(1, 1 << 16),
    st.none() | st.integers(1, 8192),
)
def test_without_the_monitor_the_widest_batch_of_the_data_stays_below_the_bound(
    micro, accumulation, bound, longest
):
    plan = Plan(micro_batch=micro, accumulation=accumulation, token_bound=bound)
    final = without_splits(plan, None, longest=longest)
    assert final.token_bound is None
    assert final.rank_batch == plan.rank_batch
    assert final.micro_batch * (longest or 1) <= bound or final.micro_batch == 1
    assert halvings(plan, final) == ()  # the next run begins with the bound


VARIED = Lengths(samples=3, sorted_tokens=(60, 64, 900), counted_by="the tokenizer")
KILLED = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)


def after_a_kill(plan: Plan, *seen: object, **attempt: object) -> tuple[RunRecord, DeviceFree]:
    """Return a job with samples of many lengths whose only attempt ran out of memory."""
    record = story(*seen, Exited(t=2, attempt=1, returncode=1, verdict=KILLED))
    free = DeviceFree(t=3, attempt=1, free=True, waited_s=0)
    record = record.apply(free)
    spec = AttemptSpec(plan=plan, path=("bound_tokens",) if plan.token_bound else ())
    last = replace(record.last, spec=spec, **attempt)
    job = make_job(Plan(micro_batch=16, accumulation=1), lengths=VARIED, divides=True)
    return replace(record, job=job, attempts=(last,)), free


def test_a_job_of_varied_lengths_is_bounded_before_its_micro_batch_is_halved():
    plan = Plan(micro_batch=16, accumulation=1)
    action = decide(*after_a_kill(plan), make_ladder())
    assert isinstance(action, Launch)
    assert action.spec.plan == replace(plan, token_bound=8 * 900)
    assert action.spec.path == ("bound_tokens",)


def test_a_bounded_job_is_bounded_further_and_then_not_halved():
    alone = Plan(micro_batch=16, accumulation=1, token_bound=900)
    tighter = decide(*after_a_kill(replace(alone, token_bound=1800), reporting=True), make_ladder())
    assert isinstance(tighter, Launch)
    assert tighter.spec.plan == alone
    ended = decide(*after_a_kill(alone, reporting=True), make_ladder())
    assert isinstance(ended, Finish)
    reasons = {skip.strategy: skip.reason for skip in ended.skipped}
    assert "longest sample alone" in reasons["bound_tokens"]
    assert "parts of at most 900 tokens" in reasons["halve_micro_batch"]


@pytest.mark.parametrize("why", ["the loss is not known", None])
def test_a_bound_that_nobody_kept_is_followed_by_a_smaller_micro_batch(why):
    plan = Plan(micro_batch=16, accumulation=1, token_bound=7200)
    said = [] if why is None else [NotSplit(t=1, attempt=1, rank=None, reason=why, width=None)]
    action = decide(*after_a_kill(plan, *said, reporting=why is not None), make_ladder())
    assert isinstance(action, Launch)
    assert action.spec.plan.micro_batch == 8
    (skip,) = [skip for skip in action.spec.skipped if skip.strategy == "bound_tokens"]
    assert (why or "no process of the job loaded the monitor") in skip.reason


def test_the_ladder_does_not_halve_a_micro_batch_whose_single_row_did_not_fit():
    verdict = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
    alone = NotSplit(t=1, attempt=1, rank=None, reason="a single row does not fit", width=700)
    free = DeviceFree(t=3, attempt=1, free=True, waited_s=0)
    ended = Exited(t=2, attempt=1, returncode=1, verdict=verdict)
    ladder = make_ladder()
    halved = decide(story(ended, free), free, ladder)
    assert isinstance(halved, Launch)
    assert halved.spec.path == ("halve_micro_batch",)
    other = decide(story(alone, ended, free), free, ladder)
    assert isinstance(other, Finish)  # nothing else is left for this job
    (skip,) = [skip for skip in other.skipped if skip.strategy == "halve_micro_batch"]
    assert "a single row of 700 tokens" in skip.reason


def test_splitting_needs_the_monitor_and_the_strategy_that_it_carries_out():
    limits = Limits(ladder=("halve_micro_batch",), allow=SAME_MATH, max_attempts=9, in_place=True)
    assert limits.splits
    for change in ({"ladder": ("enable_qlora",)}, {"inside": False}, {"grow": True}):
        assert not replace(limits, **change).splits
    assert not Limits(ladder=limits.ladder, allow=SAME_MATH, max_attempts=9).splits


def leaking(steps: int) -> list[object]:
    """Return the events of a process that leaks 64 MiB a step, and is split once it runs out.

    A whole step needs 3 GiB beside what is kept, of 10 GiB.
    """
    observer = Observer(1, gpu_limit_bytes=10 * GIB)
    events: list[object] = []
    for step in range(1, steps + 1):
        kept = GIB + step * 64 * MIB
        whole = kept + 3 * GIB
        if whole > 10 * GIB:
            events += observer.take(report({**OOM, "step": step - 1}), 1.0)
            events += observer.take(report({**SPLIT, "step": step - 1}), 1.0)
        memory = on_card(
            allocated_bytes=kept,
            peak_allocated_bytes=min(whole, 10 * GIB),
            reserved_bytes=min(whole, 10 * GIB),
            free_bytes=60 * GIB,
        )
        events += observer.take(reported("step", step=step, memory=memory), 1.0)
    events += observer.take(report({**OOM, "step": steps, "uncaught": True}), 2.0)
    return events


def test_a_leak_whose_steps_are_split_is_still_growth_and_the_job_begins_again():
    events = leaking(130)
    split = [event for event in events if isinstance(event, Split)]
    growing = [event for event in events if isinstance(event, Growing)]
    assert len(split) == 34
    assert growing
    assert growing[0].growth.bytes_per_step == 64 * MIB
    ended = events[-1]
    assert isinstance(ended, Noticed)
    assert ended.finding.cause is Cause.GROWTH

    until = events.index(split[9])
    at_checkpoint = Saved(t=1.5, attempt=1, checkpoint=Checkpoint(path="/c/100", step=100))
    record = story(*events[: until + 1], at_checkpoint)
    assert decide(record, at_checkpoint, make_ladder()) == Stop(reason=StopReason.RECYCLE)
