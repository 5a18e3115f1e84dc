"""When a shortage in the log counts as caught: the record, and what the log adds to it."""

from __future__ import annotations

import pytest

from oomguard.evidence.judge import judge
from oomguard.evidence.verdict import Kind
from oomguard.job.plan import Plan
from oomguard.process.messages import Output
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import Noticed, Progress
from oomguard.run.observer import Observer
from oomguard.run.state import Attempt
from reported import reported
from shell.launches import TORCH_OOM


@pytest.fixture
def follow():
    """Return a function that follows an attempt: (time, what was seen) pairs to its state."""

    def fold(*seen):
        plan = Plan(micro_batch=1, accumulation=1)
        observer, attempt = Observer(1, begin=100.0), Attempt(number=1, spec=AttemptSpec(plan=plan))
        for t, news in seen:
            for event in observer.take(news, t):
                match event:
                    case Progress():
                        attempt = attempt.with_progress(event)
                    case Noticed():
                        attempt = attempt.with_finding(event)
        return attempt

    return fold


def printed(*lines):
    return Output(data="".join(f"{line}\n" for line in lines).encode())


def stepped(number, *, at):
    return reported("step", step=number, t=at)


def test_a_step_after_it_shows_that_it_was_caught(follow):
    attempt = follow((1.0, printed(TORCH_OOM)), (2.0, stepped(1, at=101.9)))
    assert attempt.suspected_t is None
    assert judge(attempt.findings, 0).kind is Kind.OK
    assert judge(attempt.findings, 1).kind is Kind.UNKNOWN


def test_a_step_before_it_shows_nothing_though_its_report_comes_late(follow):
    attempt = follow((1.0, printed(TORCH_OOM)), (2.0, stepped(1, at=100.9)))
    assert attempt.suspected_t == 1.0
    assert judge(attempt.findings, 1).kind is Kind.HOST_OOM


def test_another_one_after_the_step_counts_again(follow):
    attempt = follow(
        (1.0, printed(TORCH_OOM)), (2.0, stepped(1, at=101.9)), (3.0, printed(TORCH_OOM))
    )
    assert attempt.suspected_t == 3.0
    assert judge(attempt.findings, 1).kind is Kind.HOST_OOM


def test_steps_that_the_log_tells_of_count_too(follow):
    steps = [f"{{'loss': 2.5, 'learning_rate': 1e-05, 'epoch': 0.{n}}}" for n in range(1, 7)]
    bar = [f" {n}0%|#         | {n}/10 [00:0{n}<00:09,  1.00s/it]" for n in range(1, 7)]
    lines = [line for pair in zip(bar, steps, strict=True) for line in pair]
    assert follow((1.0, printed(TORCH_OOM))).suspected_t == 1.0
    assert follow((1.0, printed(TORCH_OOM)), (2.0, printed(*lines))).suspected_t is None
