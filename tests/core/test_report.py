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
from oomguard.job.command import Command, File
from oomguard.job.plan import Plan, Tuning
from oomguard.job.provenance import DataFingerprint, Environment
from oomguard.ladder.strategy_contract import Skip
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Finished,
    Limits,
    Planned,
    Resumed,
    RunStarted,
    Started,
    Status,
)
from oomguard.run.report import FitReport, build, from_json, schema, to_json
from oomguard.run.reproduction import PYTHON, reproduction
from oomguard.run.state import RunRecord, replay
from oomguard.strategy import SAME_MATH

SCHEMA = Path(oomguard.__file__).with_name("fit-report.schema.json")
TOKEN = "hf_abcdefghijklmnopqrstuvwx"
TEXT = f"per_device_train_batch_size: 16 # mine\nhub_token: {TOKEN}\n"
FINAL = Command(
    argv=("python", "/job/x.py", "--token", TOKEN, "--config", "/r/final/train.yaml"),
    cwd="/job",
    env={"HF_HOME": "/job/hub", "WANDB_API_KEY": TOKEN, "PATH": "/venv/bin"},
    files=(File(path="/r/final/train.yaml", text=TEXT.replace("16", "8")),),
    config="/r/final/train.yaml",
)


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
    return build(record(status), final=FINAL if status is Status.FIT else None, folder="/r/final")


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


def test_what_reproduces_it_has_no_path_of_its_own_and_no_secret():
    found = report().reproduction
    assert found.argv == (
        PYTHON,
        "{oomguard:job}/x.py",
        "--token",
        "***",
        "--config",
        "{oomguard:final}/train.yaml",
    )
    assert found.env == {"HF_HOME": "{oomguard:job}/hub", "WANDB_API_KEY": "***"}
    (file,) = found.files
    assert (file.path, found.config) == (
        "{oomguard:final}/train.yaml",
        "{oomguard:final}/train.yaml",
    )
    assert file.text == 'per_device_train_batch_size: 8 # mine\nhub_token: "***"\n'
    assert found.masked == ("***", "***", "{oomguard:final}/train.yaml")
    there = found.at(job="/other", final="/other/f", python="/py")
    assert there.argv[:2] == ("/py", "/other/x.py")
    assert (there.config, there.env["HF_HOME"]) == ("/other/f/train.yaml", "/other/hub")
    assert report(Status.EXHAUSTED).reproduction is None


@pytest.mark.parametrize(
    ("text", "portable"),
    [
        ("/job", "{oomguard:job}"),
        ("--dir=/job/data", "--dir={oomguard:job}/data"),
        ("a: '/job/x', b: /jobs, c: /my/job/x", "a: '{oomguard:job}/x', b: /jobs, c: /my/job/x"),
        ("/r/final/a.json /r/final2", "{oomguard:final}/a.json /r/final2"),
    ],
)
def test_only_whole_paths_are_made_portable(text, portable):
    command = replace(FINAL, argv=("x", text), files=())
    assert reproduction(command, make_job(), "/r/final").argv == ("x", portable)


OLD = Path(__file__).parents[1] / "data" / "reports" / "version-1.json"


def test_a_report_of_the_first_version_is_read():
    old = from_json(OLD.read_bytes())
    assert (old.schema_version, old.status) == (1, Status.FIT)
    assert [one.name for one in old.environment.gpus] == ["NVIDIA A10G", "NVIDIA A10G"]
    assert old.environment.host_memory_bytes == int(23.54 * (1 << 30))
    assert old.environment.executable == "/venv/bin/python"
    assert (old.data, old.reproduction, old.attempts[0].loss) == (None, None, None)


def test_a_report_of_a_newer_version_says_so():
    document = {**json.loads(OLD.read_text()), "schema_version": 99}
    with pytest.raises(msgspec.DecodeError, match="schema version is 99, this oomguard reads up"):
        from_json(json.dumps(document).encode())


def test_the_published_schema_is_that_of_the_code():
    published = json.loads(SCHEMA.read_text())
    assert published == json.loads(json.dumps(schema())), "run: make schema"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 1}, published)


def test_a_resumed_run_was_made_of_what_was_there_when_it_was_resumed():
    old, new = Environment(system="a", driver="1"), Environment(system="b", driver="2")
    data = DataFingerprint(seed=7)
    job = make_job()
    limits = Limits(ladder=(), allow=SAME_MATH, max_attempts=9)
    events = [
        RunStarted(
            t=0, run="r", version="0.1.0", at="2026", job=job, limits=limits, environment=old,
            data=data,
        ),
        Planned(t=0, attempt=1, spec=AttemptSpec(plan=job.asked)),
    ]  # fmt: skip
    resumed = Resumed(t=6, version="0.1.0", at="2026", environment=new)
    assert replay(events).environment == old
    assert replay([*events, resumed]).environment == new
    assert replay([*events, resumed]).data == data
    unknown = replace(resumed, environment=None)
    assert replay([*events, unknown]).environment == old
