"""A job that is interrupted while it runs a step again in smaller parts."""

from __future__ import annotations

import os
import signal

from faults.cells import Cell, scenarios

SPLIT_AT_5 = {"SPLIT_AT": "5"}


def interrupted(cell: Cell, signum: signal.Signals) -> None:
    """Send oomguard a signal in the middle of a split, and hold what is left and what resumes."""
    cell.env = SPLIT_AT_5
    with cell.launched() as pid:
        cell.wait_held()
        os.kill(pid, signum)
    told = signum == signal.SIGTERM
    assert cell.codes == [130 if told else -signum], cell.said
    assert (cell.record.status == "interrupted") == told
    assert not told or cell.left() == []
    assert cell.record.last.splits is None
    assert [row["step"] for row in cell.ledger()] == [1, 2, 3, 4]
    assert cell.resume() == 0, cell.said
    assert cell.left() == []
    assert cell.kinds == ["interrupted", "ok"], cell.said
    assert [row["step"] for row in cell.ledger()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {row["micro"] for row in cell.ledger()} == {8}
    assert cell.is_trained()
    splits = cell.record.last.splits
    assert splits is not None
    assert [(one.step, one.parts) for one in splits.at] == [(5, 2)]


def sigterm_in_a_split_ends_the_run_as_interrupted_and_no_step_is_done_twice(cell: Cell) -> None:
    interrupted(cell, signal.SIGTERM)


def a_kill_in_a_split_leaves_a_run_that_resumes_and_no_step_is_done_twice(cell: Cell) -> None:
    interrupted(cell, signal.SIGKILL)


def a_job_that_is_killed_in_a_split_has_run_out_of_memory(cell: Cell) -> None:
    """Its own process goes: nothing answers the error any more, and the ladder goes on."""
    cell.env = SPLIT_AT_5
    with cell.launched():
        cell.wait_held()
        for pid in cell.left():
            os.kill(pid, signal.SIGKILL)
    assert cell.codes == [0], cell.said
    assert cell.left() == []
    assert cell.kinds == ["device_oom", "ok"], cell.said
    assert [row["micro"] for row in cell.ledger()] == [8, 8, 8, 8, 4, 4, 4, 4]
    assert cell.is_trained()


played, test_splitting = scenarios(
    sigterm_in_a_split_ends_the_run_as_interrupted_and_no_step_is_done_twice,
    a_kill_in_a_split_leaves_a_run_that_resumes_and_no_step_is_done_twice,
    a_job_that_is_killed_in_a_split_has_run_out_of_memory,
)
