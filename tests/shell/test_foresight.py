"""Where a launch begins, given an outlook; and how attempts teach the index."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generators import make_job, make_ladder
from oomguard.catalogue.lookup import find_model
from oomguard.cli.foresight import start_of
from oomguard.decide import Launch, decide
from oomguard.estimate.memory import Fits
from oomguard.events import Limits, RunStarted, event_from_json, event_to_json
from oomguard.plan import Plan, Precision, Quantization, Tuning
from oomguard.prediction.outlook import Outlook, Room, outlook
from oomguard.prediction.predict import Predictor
from oomguard.prediction.question import Question
from oomguard.recipe import Family
from oomguard.record import RunRecord
from oomguard.strategy import Fidelity
from oomguard.units import GIB
from shapes import FACTORY

ASKED = Plan(
    micro_batch=8,
    accumulation=2,
    sequence_length=2048,
    checkpointing=True,
    precision=Precision.BF16_MIXED,
    quantization=Quantization.NONE,
    tuning=Tuning.LORA,
    lora_rank=8,
    optimizer="adamw_torch",
    auto_find_batch_size=True,
)
JOB = make_job(ASKED)
LADDER = make_ladder(ladder="classic")


@pytest.fixture
def look(tmp_path):
    model = find_model(
        "meta-llama/Meta-Llama-3-8B", Family.HF, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"}
    )

    def at(device_bytes: int, host_bytes: int | None = None) -> tuple[Outlook, Room]:
        room = Room(device_bytes=device_bytes, host_bytes=host_bytes)

        def question(plans):
            return Question(
                job=JOB, recipe=FACTORY, model=model, plans=plans, capacity_bytes=device_bytes
            )

        return outlook(JOB, LADDER, room, question, Predictor()), room

    return at


def test_it_begins_at_the_first_rung_that_is_expected_to_fit(look):
    found, room = look(24 * GIB)
    start = start_of(found, room)
    assert start is not None
    assert start.path == ("halve_micro_batch",) * len(start.path)
    before = [rung for rung in found.rungs if rung.plan is not None][: len(start.path)]
    assert before[-1].plan == start.plan
    assert before[-1].estimate.expected_bytes <= 24 * GIB
    assert all(rung.estimate.expected_bytes > 24 * GIB for rung in before[:-1])
    assert start.plan.rank_batch == ASKED.rank_batch


def test_what_fits_as_asked_and_what_never_fits_begin_at_the_top(look):
    assert start_of(*look(200 * GIB)) is None
    assert start_of(*look(1 * GIB)) is None


def test_too_little_host_memory_is_no_fit(look):
    found, _ = look(200 * GIB)
    assert start_of(found, Room(device_bytes=200 * GIB, host_bytes=1 * GIB)) is None
    assert Room(device_bytes=200 * GIB, host_bytes=1 * GIB).fits(found.asked.estimate) is Fits.NO


def test_the_state_machine_begins_there_and_the_record_can_be_replayed(look):
    start = start_of(*look(24 * GIB))
    limits = Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9)
    begun = RunStarted(
        t=0.0, run="r", version="1", at="now", job=replace(JOB), limits=limits, start=start
    )
    again = event_from_json(event_to_json(begun))
    assert again == begun
    action = decide(RunRecord().apply(begun), begun, LADDER)
    assert isinstance(action, Launch)
    assert (action.plan, action.path) == (start.plan, start.path)
    # the framework's own batch search is turned off before any rung
    assert action.steps[0].strategy == "disable_auto_find_batch_size"
    assert action.plan.auto_find_batch_size is False


def test_without_a_start_it_begins_with_what_was_asked():
    limits = Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9)
    begun = RunStarted(t=0.0, run="r", version="1", at="now", job=JOB, limits=limits)
    action = decide(RunRecord().apply(begun), begun, LADDER)
    assert isinstance(action, Launch)
    assert action.plan == replace(ASKED, auto_find_batch_size=False)
    assert action.path == ()
