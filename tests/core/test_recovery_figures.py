"""The event log of a recovered run as a row of the table in benchmarks/recovery."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "recovery"))
from figures import read, row, table


def step(at, done, loss, samples=16, *, width=16, tokens=None, event="step"):
    tokens = samples * (width - 1) if tokens is None else tokens
    return {
        "event": event, "at": at, "done": done, "samples": samples, "width": width,
        "tokens": tokens, "loss": loss,
    }  # fmt: skip


def at(event, seconds):
    return {"event": event, "at": seconds}


#: Three steps of 16 samples; the second one has a sample of 256 tokens.
WHOLE = [
    *(at("launched", 100.0), at("started", 101.0)),
    *(step(111.0, 16, 10.0), step(112.0, 32, 8.0, width=256), step(113.0, 48, 5.0)),
    at("ended", 114.0),
]


def figures(events, hurdle="step", width=256):
    return row(events, WHOLE, hurdle=hurdle, width=width, samples=16)


def test_a_relaunched_run_counts_its_launches_and_what_it_repeated():
    again = [
        *(at("launched", 0.0), at("started", 2.0), step(10.0, 16, 10.0)),
        *(at("started", 12.0), step(20.0, 16, 10.0), step(22.0, 32, 8.0, width=256)),
        *(step(23.0, 48, 5.05), at("ended", 28.0)),
    ]
    assert figures(again) == {
        "launches": 2,
        "seconds_to_fit": 22.0,
        "seconds": 28.0,
        "of_whole": 2.0,
        "global_batch": 16,
        "deviation": pytest.approx(0.01),
        "repeated_steps": 1.0,
        "trained": True,
    }


def test_a_smaller_global_batch_is_compared_on_the_same_samples():
    smaller = [
        *(at("launched", 0.0), at("started", 1.0), step(2.0, 16, 10.0)),
        *(step(4.0, 12, 10.0, 12), step(5.0, 24, 8.5, 12, width=256)),  # 24: 4 of 10.0 and 8 of 8.0
        *(step(6.0, 36, 7.0, 12), step(7.0, 48, 5.0, 12), at("ended", 10.0)),
    ]
    found = figures(smaller)
    assert (found["launches"], found["global_batch"], found["seconds_to_fit"]) == (1, 12, 5.0)
    assert (found["repeated_steps"], found["trained"]) == (1.0, True)
    expected = (4 * 10.0 + 8 * 8.0) / 12
    assert found["deviation"] == pytest.approx((expected - 8.5) / expected)


def test_steps_that_a_smaller_batch_redid_from_the_first_are_not_compared():
    redone = [
        *(at("launched", 0.0), at("started", 1.0), step(2.0, 16, 99.0), step(3.0, 32, 99.0)),
        *(step(4.0, 24, 9.0, 24), step(5.0, 48, 6.5, 24, width=256), at("ended", 6.0)),
    ]
    found = figures(redone)
    assert (found["global_batch"], found["repeated_steps"]) == (24, 2.0)
    # 16 of 10.0 and 8 of 8.0, then 8 of 8.0 and 16 of 5.0
    assert found["deviation"] == pytest.approx((6.5 - 6.0) / 6.0)


def test_a_run_that_never_fits_has_no_times_and_did_not_train():
    failed = [at("launched", 0.0), *(at("started", float(second)) for second in range(1, 5))]
    found = figures(failed)
    assert (found["launches"], found["trained"], found["global_batch"]) == (4, False, None)
    assert found["seconds_to_fit"] is found["seconds"] is found["of_whole"] is None
    assert (found["deviation"], found["repeated_steps"]) == (None, 0.0)


def test_trials_of_a_finder_are_repeated_work_and_no_step_that_fits():
    found = figures(
        [
            *(at("launched", 0.0), at("started", 1.0)),
            *(step(2.0, 2, 9.9, 2, width=256, event="trial"),),
            *(step(3.0, 4, 9.8, 2, width=256, event="trial"),),
            *(step(6.0, 16, 10.0), step(7.0, 32, 8.0, width=256), step(8.0, 48, 5.0)),
            at("ended", 9.0),
        ]
    )
    assert (found["seconds_to_fit"], found["repeated_steps"]) == (7.0, 0.25)
    assert found["deviation"] == 0.0


def test_an_end_before_all_samples_were_trained_is_not_trained():
    assert figures([*WHOLE[:3], at("ended", 112.5)])["trained"] is False


def test_an_evaluation_that_ended_is_what_fits():
    evaluated = [*WHOLE[:3], at("evaluated", 111.5), *WHOLE[3:]]
    assert figures(evaluated, "evaluated", 0)["seconds_to_fit"] == 11.5


def test_a_line_that_was_cut_off_is_left_out_and_the_rest_is_in_order_of_time():
    lines = [json.dumps(event) for event in (WHOLE[1], WHOLE[0])]
    assert read("\n".join([*lines, '{"event": "st'])) == WHOLE[:2]


def test_the_table_has_medians_and_dashes_where_nothing_was_reached():
    failed = figures([at("launched", 0.0), at("started", 1.0)])
    runs = [
        {"turn": turn, "contestant": name, "cpu_seconds": cpu, "row": found}
        for turn, (name, cpu, found) in [
            *((turn, ("whole", 10.0, figures(WHOLE))) for turn in (0, 1)),
            *((turn, ("torchrun", 99.0, failed)) for turn in (0, 1)),
        ]
    ]
    lines = table(runs, {"whole": "whole", "torchrun": "whole"}, 16).splitlines()
    assert lines[2:] == [
        "| whole | yes | 1 | 12 | 14 | 1.00 | 1.00 | 16 of 16 | 0.0e+00 | 0 |",
        "| torchrun | no | 1 | - | - | - | - | - of 16 | - | 0 |",
    ]
