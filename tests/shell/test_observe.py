"""What the supervisor makes of an attempt's output, reports and kernel counters."""

from __future__ import annotations

import pytest

from oomguard.evidence.verdict import Kind, Phase, Witness
from oomguard.process.messages import Kernel, Output
from oomguard.run.events import Noticed, Progress
from oomguard.run.observer import MOST_FINDINGS, Observer
from oomguard.units import GIB
from reported import on_card, reported

TEXT = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


def oom(*, uncaught, step=0):
    return reported("oom", step=step, uncaught=uncaught, requested_bytes=5, capacity_bytes=9)


@pytest.fixture
def observer():
    return Observer(1)


def findings(events):
    return [event.finding for event in events if isinstance(event, Noticed)]


def test_an_uncaught_error_from_inside_is_a_finding_with_its_figures(observer):
    (found,) = findings(observer.take(oom(uncaught=True), 1.0))
    assert (found.witness, found.kind, found.phase) == (
        Witness.INSIDE,
        Kind.DEVICE_OOM,
        Phase.FORWARD,
    )
    assert (found.requested_bytes, found.capacity_bytes, found.handled) == (5, 9, False)


@pytest.mark.parametrize(("held", "least"), [([], None), ([20], 20), ([20, 7], 7), ([20, None], 0)])
def test_of_several_gpus_the_least_was_held_on_the_one_that_was_full(observer, held, least):
    card = on_card()["cuda"][0]
    cards = [{**card, "device": n, "allocated_bytes": size} for n, size in enumerate(held)]
    memory = {"rss_bytes": None, "peak_rss_bytes": None, "cuda": cards}
    (found,) = findings(observer.take(reported("oom", uncaught=True, memory=memory), 1.0))
    assert found.allocated_bytes == least


def test_a_caught_error_is_a_finding_once_the_process_has_taken_another_step(observer):
    first = list(observer.take(oom(uncaught=False, step=3), 1.0))
    assert findings(first) == []
    assert [e.caught for e in first if isinstance(e, Progress)] == [True]
    (found,) = findings(observer.take(reported("step", step=4), 2.0))
    assert found.handled is True


@pytest.mark.parametrize("well", [True, False])
def test_a_caught_error_without_another_step_is_judged_by_how_the_job_ended(observer, well):
    list(observer.take(oom(uncaught=False, step=3), 1.0))
    (found,) = findings(observer.close(2.0, well=well))
    assert found.handled is well


def test_an_error_that_passes_a_hook_and_then_ends_the_process_counts_once(observer):
    list(observer.take(oom(uncaught=False), 1.0))
    assert len(findings(observer.take(oom(uncaught=True), 1.1))) == 1
    assert findings(observer.close(2.0, well=False)) == []


def test_what_stands_on_the_card_before_the_first_pass_is_told_apart_from_peaks(observer):
    card = {
        "allocated_bytes": 5, "reserved_bytes": 8, "peak_allocated_bytes": 6,
        "peak_reserved_bytes": 8, "free_bytes": 80, "total_bytes": 100,
    }  # fmt: skip
    memory = on_card(**card)
    (loads,) = observer.take(reported("phase", phase="load", memory=memory), 1.0)
    (begins,) = observer.take(reported("phase", memory=memory), 1.1)
    (later,) = observer.take(reported("step", step=1, memory=memory), 1.2)
    assert [said.loaded_bytes for said in (loads, begins, later)] == [None, 5, None]
    assert [said.context_bytes for said in (loads, begins, later)] == [12, 12, 12]
    silent = on_card(**{**card, "free_bytes": None})
    (unknown,) = observer.take(reported("step", step=2, memory=silent), 1.3)
    assert (unknown.context_bytes, unknown.device_bytes) == (None, 6)


def test_memory_of_another_process_is_no_context(observer):
    card = {"reserved_bytes": 8 * GIB, "free_bytes": 50 * GIB, "total_bytes": 80 * GIB}
    (seen,) = observer.take(reported("step", step=1, memory=on_card(**card)), 1.0)
    assert seen.context_bytes is None


def test_a_message_cut_off_by_silence_is_seen(observer):
    cut = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate\n"
    seen = findings(observer.take(Output(data=cut), 1.0)) + findings(observer.wait(1.1))
    assert [found.kind for found in seen] == [Kind.DEVICE_OOM]
    assert list(observer.wait(1.2)) == []


def test_the_kernels_counter_is_a_finding(observer):
    (found,) = findings(observer.take(Kernel(oom_kills=2, total=2), 1.0))
    assert (found.witness, found.kind) == (Witness.KERNEL, Kind.HOST_OOM)
    assert "2 process" in found.text
    assert found.phase is Phase.UNKNOWN


def test_a_kill_by_the_kernel_is_of_the_phase_that_was_said_last(observer):
    for phase in ("preprocess", "load"):
        list(observer.take(reported("phase", phase=phase), 1.0))
        (found,) = findings(observer.take(Kernel(oom_kills=1, total=1), 1.0))
        assert found.phase.value == phase


def test_a_job_that_prints_errors_without_end_fills_no_record(observer):
    seen = [
        found for _ in range(200) for found in findings(observer.take(Output(data=TEXT * 5), 1.0))
    ]
    assert len(seen) <= MOST_FINDINGS


def test_progress_is_thinned_out_after_the_first_steps(observer):
    events = [e for n in range(1, 101) for e in observer.take(reported("step", step=n), n / 100)]
    assert [e.step for e in events[:3]] == [1, 2, 3]
    assert 3 < len(events) < 10
    (bye,) = observer.take(reported("bye", step=100), 1.01)
    assert bye.step == 100


@pytest.fixture
def ranks(observer):
    """Give a function that tells whether the uncaught OOM of a process counts as a helper's."""
    observer.ranks.leader = 100

    def helper(pid, rank, *before):
        for report in before:
            list(observer.take(report, 1.0))
        (found,) = findings(observer.take(oom_of(pid, rank), 2.0))
        return found.helper

    return helper


def oom_of(pid, rank):
    return reported("oom", pid=pid, rank=rank, uncaught=True)


def hello(pid, rank):
    return reported("hello", pid=pid, rank=rank)


def test_the_main_process_and_what_takes_steps_are_ranks(ranks):
    assert ranks(100, None) is False
    assert ranks(101, None, hello(101, None)) is True
    assert ranks(101, None, reported("step", pid=101, step=1)) is False


def test_the_first_process_with_a_rank_is_that_rank_and_others_inherit_it(ranks):
    first = (hello(100, None), hello(101, 0), hello(102, 1), hello(103, 0))
    assert ranks(101, 0, *first) is False
    assert ranks(102, 1) is False
    assert ranks(103, 0) is True
    assert ranks(104, 0) is True  # a loader's worker says no hello
    assert ranks(105, 2) is False
    assert ranks(106, 1, reported("bye", pid=102, rank=1), hello(106, 1)) is False


def test_an_error_that_ends_the_training_loop_is_not_handled_by_an_exit_with_zero(observer):
    list(observer.take(oom(uncaught=False, step=3), 1.0))
    list(observer.take(reported("trained", completed=False), 1.1))
    (found,) = findings(observer.close(2.0, well=True))
    assert found.handled is False


def test_a_loop_that_returns_at_the_second_try_has_handled_it(observer):
    list(observer.take(oom(uncaught=False, step=3), 1.0))
    list(observer.take(reported("trained", completed=False), 1.1))
    _, told = observer.take(reported("trained"), 1.2)
    assert (told.finding.kind, told.finding.witness) == (Kind.OK, Witness.INSIDE)
    (found,) = findings(observer.close(2.0, well=True))
    assert found.handled is True


def test_private_data_is_the_measure_of_a_limit_on_each_process(observer):
    """As after a backward pass, where it is close to its peak."""
    memory = {"rss_bytes": 5, "peak_rss_bytes": 6, "data_bytes": 7, "cuda": []}
    (step,) = observer.take(reported("step", step=1, memory={**memory, "peak_data_bytes": 9}), 1.0)
    (bye,) = observer.take(reported("bye", step=1, memory=memory), 2.0)
    assert [(one.host_bytes, one.data_bytes) for one in (step, bye)] == [(6, 9), (6, 7)]
