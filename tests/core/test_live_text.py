"""What the last row of a terminal says of a run."""

from __future__ import annotations

from typing import Any

import pytest

from generators import make_job
from oomguard.cli.live_text import Pace, live_text
from oomguard.evidence.verdict import Phase
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.process.limits import CapBy
from oomguard.run.events import Counted, Limits, Progress, RunStarted
from oomguard.run.state import RunRecord
from oomguard.units import GIB
from reported import reported
from told import Told

WIDE = 200


class Seen(Told):
    """A run of one attempt, and its pace."""

    def __init__(self, **limits: Any) -> None:
        super().__init__()
        self.pace = Pace()
        stated = Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9, **limits)
        start = RunStarted(t=0, run="r", version="0", at="now", job=make_job(), limits=stated)
        self.launch(self.happen(start))

    def progress(self, step: int, t: float, phase: Phase = Phase.FORWARD, **sizes: int) -> None:
        event = Progress(t=t, attempt=1, pid=7, rank=None, step=step, phase=phase, **sizes)
        self.pace.add(event)
        self.happen(event)

    def total(self, steps: int) -> None:
        training = reported("training", total_steps=steps).report
        self.happen(
            Counted(t=2, attempt=1, pid=7, rank=None, world=None, step=0, training=training)
        )

    def text(self, width: int = WIDE) -> str:
        return live_text(self.record, self.pace, width)


def test_before_the_first_attempt_there_is_nothing_to_say() -> None:
    assert live_text(RunRecord(), Pace(), WIDE) == ""


def test_before_the_first_step_it_says_what_the_job_does() -> None:
    run = Seen()
    assert run.text() == "oomguard attempt 1  starting"
    run.progress(0, 3.0, Phase.LOAD)
    assert run.text() == "oomguard attempt 1  loading the model"


def test_steps_have_a_rate_and_what_is_left() -> None:
    run = Seen()
    run.total(100)
    run.progress(1, 10.0)
    assert run.text() == "oomguard attempt 1  step 1 of 100"
    run.progress(11, 15.0)
    assert run.text() == "oomguard attempt 1  step 11 of 100  2.0 steps/s  0:44 left"
    run.progress(12, 175.0)
    assert "15.0 s a step  22:00 left" in run.text()


def test_an_evaluation_is_named_beside_the_step() -> None:
    run = Seen()
    run.progress(5, 10.0, Phase.EVAL)
    assert run.text() == "oomguard attempt 1  evaluating  step 5"


@pytest.mark.parametrize(
    ("limits", "sizes", "shown"),
    [
        ({"gpu_memory_bytes": 24 * GIB}, {"reserved_bytes": 18 * GIB, "host_bytes": GIB},
         "GPU ████████░░ 18.00 GiB of 24.00 GiB"),
        ({}, {"reserved_bytes": 18 * GIB}, "GPU 18.00 GiB"),
        ({"host_memory_bytes": 4 * GIB, "host_memory_by": CapBy.RLIMIT},
         {"data_bytes": 3 * GIB, "host_bytes": 5 * GIB}, "memory ████████░░ 3.00 GiB of 4.00 GiB"),
        ({"host_memory_bytes": 4 * GIB, "host_memory_by": CapBy.CGROUP},
         {"data_bytes": 3 * GIB, "host_bytes": 5 * GIB}, "memory 5.00 GiB"),
    ],
)  # fmt: skip
def test_a_peak_stands_beside_the_limit_that_counts_it(
    limits: dict[str, Any], sizes: dict[str, int], shown: str
) -> None:
    run = Seen(**limits)
    run.progress(1, 3.0, **sizes)
    assert run.text() == f"oomguard attempt 1  step 1  {shown}"


def test_a_narrow_terminal_has_as_much_as_there_is_room_for() -> None:
    run = Seen()
    run.progress(1, 3.0)
    assert run.text(12) == "oomguard at…"
    assert [len(run.text(width)) for width in (1, 5, 20)] == [1, 5, 20]


def test_a_new_attempt_has_a_pace_of_its_own() -> None:
    pace = Pace()
    for attempt, step, t in ((1, 1, 1.0), (1, 5, 2.0), (2, 1, 9.0)):
        event = Progress(t=t, attempt=attempt, pid=7, rank=None, step=step, phase=Phase.FORWARD)
        pace.add(event)
    assert pace.steps_per_second is None
