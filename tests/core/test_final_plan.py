"""The final config after steps in parts: what is known to fit, and what is not claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import make_job
from oomguard.cli.run_lines import final_batch_line, unchanged_line
from oomguard.evidence.verdict import Kind, Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import BY_TOKENIZER, Job, Lengths
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import (
    Counted,
    Exited,
    Finished,
    Limits,
    Planned,
    Progress,
    RunStarted,
    Split,
    Started,
    Status,
)
from oomguard.run.final_plan import final_check, next_path, plan_that_fits
from oomguard.run.report import build
from oomguard.run.state import RunRecord, replay
from oomguard.run.verification import Outcome
from oomguard.strategy import SAME_MATH, Phase
from reported import reported

PLAN = Plan(micro_batch=16, accumulation=1)
LIMITS = Limits(ladder=("halve_micro_batch",), allow=SAME_MATH, max_attempts=9, in_place=True)


def trained(*splits: Split, job: Job | None = None, real: int = 16, steps: int = 300) -> RunRecord:
    """Return a run that was asked for 16 samples at once and has `real` of them."""
    job = job or make_job(PLAN)
    first = reported("training", samples=real, short=False, counted_by="trainer").report
    window = reported(
        "step",
        window={
            "samples": real, "micro_batches": 1, "label_tokens": None, "label_sum": None,
            "sequences": None, "learning_rate": None, "short": False, "counted_by": "trainer",
            "unclear": None,
        },
    ).report  # fmt: skip
    whose = {"attempt": 1, "pid": 7, "rank": None, "world": None}
    return replay(
        [
            RunStarted(t=0, run="r", version="0", at="now", job=job, limits=LIMITS),
            Planned(t=0, attempt=1, spec=AttemptSpec(plan=job.asked)),
            Started(t=0, attempt=1, pid=7, command="", kernel_watched=False),
            Counted(t=1, step=0, training=first, **whose),
            *splits,
            Counted(t=2, step=1, window=window.window, **whose),
            Progress(t=3, attempt=1, pid=7, rank=None, step=steps, phase=Phase.OPTIMIZER),
            Exited(t=4, attempt=1, returncode=0, verdict=Verdict(kind=Kind.OK)),
            Finished(t=5, status=Status.FIT, reason="trained to completion"),
        ]
    )


def split(step: int = 2, rows: int = 4, width: int = 256, **fields: object) -> Split:
    values = {
        "t": 2, "attempt": 1, "pid": 7, "rank": None, "step": step, "steps": 1, "failed": 1,
        "parts": 16 // rows, "rows": rows, "width": width, "tokens": 16 * width, "seconds": 1.0,
        "spans": ((step, step),), **fields,
    }  # fmt: skip
    return Split(**values)  # type: ignore[arg-type]


def with_lengths(*tokens: int, **fields: object) -> Job:
    lengths = Lengths(samples=len(tokens), sorted_tokens=tokens, counted_by=BY_TOKENIZER)
    return make_job(replace(PLAN, **fields), lengths=lengths)


def test_what_passed_at_once_with_all_in_memory_is_verified():
    record = trained(split(1), split(3))
    final = plan_that_fits(record)
    assert (final.micro_batch, final.accumulation) == (4, 4)
    check = final_check(record)
    assert check is not None
    assert (check.outcome, check.expected, check.observed) == (Outcome.VERIFIED, 4, 4)
    assert check.reason == "4 x 256 tokens passed at once, up to optimizer step 3"
    assert final_batch_line(check) == (f"final config: {check.reason}", "")


def test_without_divided_batches_there_is_nothing_to_verify():
    record = trained()
    assert plan_that_fits(record) == PLAN
    assert final_check(record) is None
    report = build(record)
    assert unchanged_line(report) == "the requested config fits; nothing was changed"


@pytest.mark.parametrize("real", [8, 32])
def test_a_script_with_a_micro_batch_of_its_own_is_not_given_another(real):
    """Which config would give it fewer is not known: its own one would still run out."""
    record = trained(split(2), split(3), real=real)
    assert plan_that_fits(record) == PLAN
    check = final_check(record)
    assert check is not None
    assert (check.outcome, check.expected, check.observed) == (Outcome.NOT_VERIFIED, 16, real)
    assert "needs oomguard, in parts of at most 4 x 256 tokens" in check.reason
    assert f"observed {real}" in check.reason
    report = build(record)
    assert (report.final, report.final_batch, report.changes) == (PLAN, check, ())
    assert unchanged_line(report).startswith("the requested config was not changed")
    line, style = final_batch_line(check)
    assert line.startswith("final config not verified: it keeps the requested micro batch")
    assert style == "yellow"
    assert next_path(record) == ()


def test_a_smaller_evaluation_is_kept_where_the_micro_batch_is_not_known():
    asked = replace(PLAN, eval_batch=8)
    record = trained(split(2), split(3, rows=2, evaluation=True), job=make_job(asked), real=32)
    assert plan_that_fits(record) == replace(asked, eval_batch=2)


def test_a_pass_in_the_first_step_alone_proves_nothing():
    check = final_check(trained(split(1)))
    assert check is not None
    assert check.outcome is Outcome.NOT_VERIFIED
    assert "before the optimizer had its states" in check.reason


def test_a_longer_sample_of_the_data_makes_it_smaller_and_is_not_verified():
    record = trained(split(2), job=with_lengths(200, 256, 500))
    assert plan_that_fits(record).micro_batch == 2  # of 4 x 256 tokens
    check = final_check(record)
    assert check is not None
    assert check.outcome is Outcome.NOT_VERIFIED
    assert "a sample of 500 tokens" in check.reason
    cut = trained(split(2), job=with_lengths(200, 256, 500, sequence_length=256))
    assert plan_that_fits(cut).micro_batch == 4
    found = final_check(cut)
    assert found is not None
    assert found.outcome is Outcome.VERIFIED


def test_where_few_steps_are_divided_the_next_run_divides_them_again():
    assert next_path(trained(split(2, rows=1, width=900), steps=300)) == ()
    every = split(300, rows=4, steps=299, spans=((2, 300),))
    assert next_path(trained(every)) == ("halve_micro_batch",) * 2


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 16), st.integers(1, 999), st.integers(0, 9999)),
        min_size=1,
    ),
    st.integers(1, 2048),
    st.sampled_from([8, 16, 32]),
)
def test_the_final_plan_has_the_global_batch_and_no_more_tokens_than_passed(seen, longest, real):
    splits = [
        split(step, rows, width, refused=refused and max(refused, rows * width + 1))
        for step, (_, rows, width, refused) in enumerate(seen, 1)
    ]
    record = trained(*splits, job=with_lengths(longest), real=real)
    final, found = plan_that_fits(record), record.last.splits
    assert found is not None
    assert final.rank_batch == PLAN.rank_batch
    if real == PLAN.micro_batch:
        widest = max(longest, found.width)
        assert final.micro_batch * widest <= found.rows * found.width or final.micro_batch == 1
    else:
        assert final == PLAN
        check = final_check(record)
        assert check is not None
        assert check.outcome is Outcome.NOT_VERIFIED
