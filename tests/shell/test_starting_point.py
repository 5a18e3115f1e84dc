"""Where a launch begins, given an forecast; and how attempts teach the index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from generators import make_job, make_ladder
from oomguard.catalogue.lookup import find_model
from oomguard.cli.plan_job import PlannedJob, plan_job
from oomguard.cli.prepare import prepare
from oomguard.cli.starting_point import StartingPoint, choose_start, first_expected_fit
from oomguard.estimate.memory import Fits, Term
from oomguard.job.memory_settings import Family
from oomguard.job.plan import Plan, Precision, Quantization, Tuning
from oomguard.job.training_job import Device
from oomguard.predict.forecast import Capacity, Forecast, forecast
from oomguard.predict.history import FitIndex, record_run
from oomguard.predict.prediction_request import PredictionRequest
from oomguard.predict.predictor import Predictor
from oomguard.run.attempt import AttemptSpec
from oomguard.run.decide import Launch, decide
from oomguard.run.events import (
    HistoryRef,
    Limits,
    RunStarted,
    Start,
    Status,
    event_from_json,
    event_to_json,
)
from oomguard.run.observer import Observer
from oomguard.run.state import Attempt, RunRecord
from oomguard.strategy import Fidelity
from oomguard.units import GIB, MIB
from reported import on_card, reported
from shapes import FACTORY, LLAMA_YAML
from told import Told

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

FULL_TUNING = Path(__file__).parents[2] / "recipes/llamafactory/qwen2_5_vl.yaml"


@pytest.fixture
def look(tmp_path):
    model = find_model(
        "meta-llama/Meta-Llama-3-8B", Family.HF, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"}
    )

    def at(device_bytes: int, host_bytes: int | None = None) -> tuple[Forecast, Capacity]:
        room = Capacity(device_bytes=device_bytes, host_bytes=host_bytes)

        request = PredictionRequest(
            job=JOB, recipe=FACTORY, model=model, plans=(), capacity_bytes=device_bytes
        )
        return forecast(request, LADDER, room, Predictor()), room

    return at


def test_it_begins_at_the_first_rung_that_is_expected_to_fit(look):
    found, room = look(24 * GIB)
    start = first_expected_fit(found, room)
    assert start is not None
    assert start.path == ("halve_micro_batch",) * len(start.path)
    before = [rung for rung in found.rungs if rung.plan is not None][: len(start.path)]
    assert before[-1].plan == start.plan
    assert before[-1].estimate.expected_bytes <= 24 * GIB
    assert all(rung.estimate.expected_bytes > 24 * GIB for rung in before[:-1])
    assert start.plan.rank_batch == ASKED.rank_batch


def test_what_fits_as_asked_and_what_never_fits_begin_at_the_top(look):
    assert first_expected_fit(*look(200 * GIB)) is None
    assert first_expected_fit(*look(1 * GIB)) is None


def test_too_little_host_memory_is_no_fit(look):
    found, _ = look(200 * GIB)
    assert first_expected_fit(found, Capacity(device_bytes=200 * GIB, host_bytes=1 * GIB)) is None
    assert (
        Capacity(device_bytes=200 * GIB, host_bytes=1 * GIB).fits(found.asked.estimate) is Fits.NO
    )


def test_the_state_machine_begins_there_and_the_record_can_be_replayed(look):
    fit = first_expected_fit(*look(24 * GIB))
    spec = AttemptSpec(plan=fit.plan, steps=fit.steps, path=fit.path)
    start = Start(spec=spec, reason="with what should fit")
    limits = Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9)
    begun = RunStarted(
        t=0.0, run="r", version="1", at="now", job=replace(JOB), limits=limits, start=start
    )
    again = event_from_json(event_to_json(begun))
    assert again == begun
    action = decide(RunRecord().apply(begun), begun, LADDER)
    assert isinstance(action, Launch)
    assert (action.spec.plan, action.spec.path) == (start.spec.plan, start.spec.path)
    # the framework's own batch search is turned off before any rung
    assert action.spec.steps[0].strategy == "disable_auto_find_batch_size"
    assert action.spec.plan.auto_find_batch_size is False


def test_without_a_start_it_begins_with_what_was_asked():
    limits = Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9)
    begun = RunStarted(t=0.0, run="r", version="1", at="now", job=JOB, limits=limits)
    action = decide(RunRecord().apply(begun), begun, LADDER)
    assert isinstance(action, Launch)
    assert action.spec.plan == replace(ASKED, auto_find_batch_size=False)
    assert action.spec.path == ()


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Return a job as it would be on a machine with a GPU, capped to 24 GiB of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.yaml").write_text(LLAMA_YAML)
    options = {"gpu_memory_bytes": 24 * GIB, "ladder": "classic"}
    return prepare(tmp_path / "train.yaml", (), options, planned_gpus=1)


@pytest.fixture
def index(tmp_path):
    return FitIndex(tmp_path / "fits.sqlite")


class Said(list):
    """An account that keeps what was said."""

    def say(self, text: str, _style: str = "") -> None:
        self.append(text)


def test_a_launch_on_a_gpu_is_predicted_and_the_same_job_begins_where_it_fitted(prepared, index):
    said = Said()
    first = choose_start(prepared, said, index=index)
    assert first.start is not None
    assert "estimated at" in said[-1]

    attempt = Attempt(number=1, spec=first.start.spec)
    assert (
        record_run(RunRecord(status=Status.FIT, attempts=(attempt,), lessons=first.history)) is None
    )
    again = choose_start(prepared, said, index=index)
    assert again.start is not None
    assert again.start.spec.path == ("halve_micro_batch",) * 3
    assert again.start.spec.plan.micro_batch == 1
    assert "which fit before" in said[-1]


def test_a_run_that_does_not_fit_teaches_no_rungs(prepared, index):
    first = choose_start(prepared, Said(), index=index)
    attempt = Attempt(
        number=1, spec=AttemptSpec(plan=prepared.job.asked, path=("halve_micro_batch",))
    )
    record_run(RunRecord(status=Status.EXHAUSTED, attempts=(attempt,), lessons=first.history))
    again = choose_start(prepared, Said(), index=index)
    assert again.start == first.start


def test_a_launch_starts_without_the_costly_changes_that_it_does_not_need(
    tmp_path, monkeypatch, index
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"gpu_memory_bytes": 22 * GIB}
    prepared = prepare(FULL_TUNING, (), options, planned_gpus=1)
    found = choose_start(prepared, Said(), index=index)
    assert found.fit is not None
    assert found.start is not None
    assert "projector_only" in found.fit.undone
    assert found.start.spec.path == found.fit.path
    assert {step.fidelity for step in found.start.spec.steps} == {Fidelity.SAME_MATH}
    assert found.start.spec.plan in [one.plan for one in found.predicted]


def history_of(planned: PlannedJob, index: FitIndex) -> HistoryRef:
    """Return where the job's measurements are recorded."""
    known = planned.history_key
    assert known is not None
    return HistoryRef(
        index=str(index.path), key="the job", device="RTX 3090",
        versions=known.versions, model=known.model,
    )  # fmt: skip


def test_what_was_measured_corrects_the_next_prediction(prepared, index):
    room = Capacity(device_bytes=24 * GIB)
    planned = plan_job(prepared, room, device="RTX 3090", index=index)
    asked = planned.forecast.asked
    measured = Attempt(
        number=1,
        spec=AttemptSpec(plan=asked.plan),
        steps_done=2,
        device_peak_bytes=int(asked.estimate.allocated_bytes * 1.1),
        reserved_peak_bytes=int(asked.estimate.reserved_bytes * 1.1),
    )
    unmeasured = replace(measured, steps_done=0)
    assert planned.history_key is not None
    run = RunRecord(
        job=prepared.job,
        predicted=StartingPoint(planned=planned).predicted,
        lessons=history_of(planned, index),
    )
    interrupted = Status.INTERRUPTED  # it teaches once it has been resumed
    for attempt, status, runs in (
        (unmeasured, Status.FIT, 0),
        (measured, interrupted, 0),
        (measured, Status.FIT, 1),
    ):
        record_run(replace(run, attempts=(attempt,), status=status))
        assert index.ratios(planned.history_key).runs == runs
    better = plan_job(prepared, room, device="RTX 3090", index=index)
    corrected = better.forecast.asked.estimate
    assert corrected.allocated_bytes == pytest.approx(measured.device_peak_bytes, rel=0.01)
    assert corrected.terms["weights"] == pytest.approx(asked.estimate.terms["weights"], rel=0.01)
    said = "corrected by measurements of 1 earlier run on this"
    assert any(note.startswith(said) for note in better.notes)

    # The next run is predicted with the correction, and yields the same correction.
    before = index.ratios(planned.history_key).factors[Term.ACTIVATIONS]
    again = replace(run, predicted=StartingPoint(planned=better).predicted, attempts=(measured,))
    record_run(replace(again, status=Status.FIT))
    after = index.ratios(planned.history_key)
    assert after.runs == 2
    assert after.factors[Term.ACTIVATIONS] == pytest.approx(before, rel=0.02)


def card(allocated: float, peak: float, reserved: float) -> dict[str, int]:
    """Return an 80 GiB GPU as a report has it: 600 MiB in use are not of the allocator."""
    now, most, cached = (int(size * GIB) for size in (allocated, peak, reserved))
    return {
        "allocated_bytes": now, "reserved_bytes": cached,
        "peak_allocated_bytes": most, "peak_reserved_bytes": cached,
        "free_bytes": 80 * GIB - cached - 600 * MIB, "total_bytes": 80 * GIB,
    }  # fmt: skip


def test_a_probe_on_a_card_teaches_how_far_each_term_is_off(prepared, index):
    room = Capacity(device_bytes=24 * GIB)
    planned = plan_job(prepared, room, device="RTX 3090", index=index)
    assert planned.history_key is not None
    terms = planned.forecast.asked.estimate.terms
    loaded = (terms["weights"] + terms["adapter"]) / GIB * 1.02
    peak = planned.forecast.asked.estimate.allocated_bytes / GIB * 1.1
    told = Told(ladder=prepared.ladder)
    lessons = history_of(planned, index)
    launch = told.happen(
        RunStarted(
            t=0.0, run="r", version="1", at="now", job=prepared.job, lessons=lessons,
            limits=Limits(ladder=(), allow=Fidelity.NEW_RECIPE, max_attempts=9, probe=True),
            predicted=StartingPoint(planned=planned).predicted,
        )
    )  # fmt: skip
    assert isinstance(launch, Launch)
    told.launch(launch)
    observer = Observer(1)
    said = [
        ("phase", "forward", 0, card(loaded, loaded, loaded + 0.1)),
        ("step", "optimizer", 1, card(loaded + 0.2, peak - 0.5, peak)),
        ("step", "optimizer", 2, card(loaded + 0.2, peak, peak + 1)),
        ("probe", "forward", 2, card(loaded + 0.2, peak, peak + 1)),
    ]
    for t, (kind, phase, step, sizes) in enumerate(said, start=2):
        report = reported(kind, step=step, phase=phase, memory=on_card(**sizes))
        for event in observer.take(report, float(t)):
            told.happen(event)
    (attempt,) = told.record.attempts
    assert (attempt.probed, attempt.steps_done) == (True, 2)
    assert record_run(replace(told.record, status=Status.FIT)) is None
    found = index.ratios(planned.history_key)
    assert found.runs == 1
    assert found.factors[Term.WEIGHTS] == pytest.approx(1.02, abs=1e-4)
    assert found.factors[Term.CUDA_CONTEXT] == pytest.approx(600 / 450, abs=1e-3)
    again = plan_job(prepared, room, device="RTX 3090", index=index).forecast.asked.estimate
    assert again.allocated_bytes == pytest.approx(peak * GIB, rel=0.005)


def test_no_prediction_ever_stops_a_launch(prepared, index, tmp_path):
    said = Said()
    text = LLAMA_YAML.replace("meta-llama/Meta-Llama-3-8B", "me/unheard-of")
    (tmp_path / "other.yaml").write_text(text)
    options = {"gpu_memory_bytes": 24 * GIB}
    unknown = prepare(tmp_path / "other.yaml", (), options, planned_gpus=1)
    assert choose_start(unknown, said, index=index).start is None
    assert said[-1].startswith("no prediction: unknown model")

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("a bug")

    broken = replace(prepared, adapter=Broken())
    assert choose_start(broken, said, index=index).start is None
    assert said[-1] == "no prediction: RuntimeError: a bug"


def test_a_job_on_the_cpu_is_not_predicted(prepared, index):
    job = replace(prepared.job, device=Device.CPU)
    said = Said()
    nothing = choose_start(replace(prepared, job=job), said, index=index)
    assert record_run(RunRecord(status=Status.FIT, lessons=nothing.history)) is None
    assert (nothing.start, said) == (None, [])
    assert not index.path.exists()
