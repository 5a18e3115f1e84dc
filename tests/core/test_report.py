from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import pytest

import oomguard
from generators import make_job, make_ladder
from oomguard.configfile.document import Source
from oomguard.evidence.verdict import Finding, Kind, Phase, Verdict, Witness
from oomguard.job.plan import Plan, Tuning
from oomguard.ladder.strategy_contract import Skip
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Finished,
    Limits,
    Planned,
    RunStarted,
    Started,
    Status,
)
from oomguard.run.report import FitReport, build, schema, to_json
from oomguard.run.state import RunRecord, replay
from oomguard.strategy import SAME_MATH

SCHEMA = Path(oomguard.__file__).with_name("fit-report.schema.json")
TOKEN = "hf_abcdefghijklmnopqrstuvwx"
TEXT = f"per_device_train_batch_size: 16 # mine\nhub_token: {TOKEN}\n"


def record(status: Status = Status.FIT) -> RunRecord:
    job = make_job(
        Plan(micro_batch=16, accumulation=1, tuning=Tuning.LORA),
        config=Source(path="/job/train.yaml", text=TEXT),
    )
    ladder = make_ladder()
    finding = Finding(witness=Witness.LOG, kind=Kind.DEVICE_OOM, text=f"OOM with {TOKEN}")
    oom = Verdict(
        kind=Kind.DEVICE_OOM,
        phase=Phase.FORWARD,
        requested_bytes=1 << 20,
        root=f"OOM with {TOKEN}",
        evidence=(finding,),
    )
    rung = ladder.climb(job, [job.asked], [], oom)
    limits = Limits(ladder=("halve_micro_batch",), allow=SAME_MATH, max_attempts=9)
    command = f"train --hub_token {TOKEN}"
    last = oom if status is not Status.FIT else Verdict(kind=Kind.OK)
    return replay(
        [
            RunStarted(t=0, run="r", version="0.1.0", at="2026", job=job, limits=limits),
            Planned(t=0, attempt=1, spec=AttemptSpec(plan=job.asked)),
            Started(t=1, attempt=1, pid=1, command=command, kernel_watched=True),
            Exited(t=5, attempt=1, returncode=1, verdict=oom),
            DeviceFree(t=5, attempt=1, free=True, waited_s=0.0),
            Planned(
                t=5,
                attempt=2,
                spec=AttemptSpec(
                    plan=rung.plan,
                    steps=(rung.step,),
                    path=("halve_micro_batch",),
                    skipped=rung.skipped,
                ),
            ),
            Started(t=6, attempt=2, pid=2, command=command, kernel_watched=True),
            Exited(t=9, attempt=2, returncode=0, verdict=last),
            Finished(t=9, status=status, reason="x", skipped=(Skip(strategy="a", reason="b"),)),
        ]
    )


def report(status: Status = Status.FIT) -> FitReport:
    final = TEXT.replace("16", "8") if status is Status.FIT else None
    return build(record(status), final_text=final, command=f"x --token {TOKEN}", surroundings={})


def test_a_fit_says_what_changed_and_at_which_cost():
    fit = report()
    assert [(c.field, c.before, c.after) for c in fit.changes] == [
        ("micro_batch", 16, 8),
        ("accumulation", 1, 2),
    ]
    assert fit.fidelity is SAME_MATH
    assert fit.final == replace(fit.asked, micro_batch=8, accumulation=2)
    assert "-per_device_train_batch_size: 16 # mine" in fit.config_diff
    assert "+per_device_train_batch_size: 8 # mine" in fit.config_diff


def test_an_exhausted_run_says_what_was_tried_and_how_much_was_missing():
    fit = report(Status.EXHAUSTED)
    assert fit.final is None
    assert fit.changes == ()
    assert fit.requested_bytes == 1 << 20
    assert len(fit.attempts) == 2
    assert fit.not_taken == (Skip(strategy="a", reason="b"),)


@pytest.mark.parametrize("status", Status)
def test_no_secret_reaches_a_report(status):
    assert TOKEN not in msgspec.json.encode(to_json(report(status))).decode()


@pytest.mark.parametrize("status", Status)
def test_every_report_satisfies_the_published_schema(status):
    document = json.loads(msgspec.json.encode(to_json(report(status))))
    published = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert list(published.iter_errors(document)) == []


def test_the_published_schema_is_that_of_the_code():
    published = json.loads(SCHEMA.read_text())
    assert published == json.loads(json.dumps(schema())), "run: make schema"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 1}, published)
