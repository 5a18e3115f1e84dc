"""A user who may not look or write somewhere: each command refuses with the path, or works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import oomguard

HERE = Path(oomguard.__file__).resolve()
CLOSED = [place for place in HERE.parents if not place.stat().st_mode & 0o001]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes another user"),
    pytest.mark.skipif(bool(CLOSED), reason="another user may not read oomguard here"),
]

#: All is imported first: the folder that Python lies in may be closed to others.
AS_NOBODY = """
import contextlib, importlib, io, json, os, pkgutil, resource, sys
import oomguard
from oomguard.cli.main import main
alone = ("oomguard.monitor", "oomguard.tracer", "oomguard.torch", "oomguard.__main__")
for one in pkgutil.walk_packages(oomguard.__path__, "oomguard."):
    if not one.name.startswith((*alone, "oomguard.cli.report_plots")):
        importlib.import_module(one.name)
with contextlib.redirect_stdout(io.StringIO()):
    main(["ladder"])
    main(["models", "llama"])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
answers = []
for words, env in json.loads(sys.stdin.read()):
    if os.fork() == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"said{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        if "NPROC" in env:
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.environ.update(env)
        code = main(words)
        sys.stdout.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    answers.append([status, *(open(f"said{stream}").read() for stream in (1, 2))])
print(json.dumps(answers))
"""
STRATEGY = """
from oomguard.strategy import SAME_MATH, Kind, Remedy, Strategy
STRATEGY = Strategy(summary="mine", fidelity=SAME_MATH, change=lambda job, plan: None,
                    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM)}))
"""
CONFIG = "per_device_train_batch_size: 4\noomguard:\n  command: [./python3, job.py]\n"

JOB = ("--", "./python3", "job.py", "--per_device_train_batch_size", "4")
LAUNCH = ("launch", "--no-predict", "--name", "run")
ELSEWHERE = "Choose another folder with --runs DIR."
REFUSED = [
    ((*LAUNCH, "--runs", "../readonly", *JOB),
     "../readonly/run: cannot write to the run folder: Permission denied\n  " + ELSEWHERE),
    ((*LAUNCH, "--runs", "../readonly/deeper", *JOB),
     "../readonly/deeper/run: cannot write to the run folder: Permission denied"),
    ((*LAUNCH, "--runs", "../private", *JOB),
     "../private/run: cannot write to the run folder: Permission denied\n  " + ELSEWHERE),
    ((*LAUNCH, "--runs", "../private/deeper", *JOB), "Permission denied\n  " + ELSEWHERE),
    ((*LAUNCH, "--python", "../private/python", *JOB),
     "key '--python': this Python cannot be started: Permission denied"),
    ((*LAUNCH, "--", "../private/python", *JOB[2:]), "'../private/python' is not installed"),
    (("resume", "../private/run"),
     "../private/run: cannot read this folder: Permission denied\n  Ask the owner of the run"),
    (("report", "../private/run"), "cannot read the fit-report: Permission denied"),
    (("show", "../private/run"), "cannot read the fit-report: Permission denied"),
    (("runs", "../private/run"), "Permission denied"),
    (("ladder", "--strategies", "../private/run"), "cannot be read: Permission denied"),
    ((*LAUNCH, "../private/train.yaml"), "../private/train.yaml"),
]  # fmt: skip
#: What only a prediction reads; each launch comes to its run folder, which is refused last.
READ = [
    (("--model_name_or_path", "../private/model"), {}),
    (("--model_name_or_path", "some/model"), {"HF_HOME": "../private"}),
    (("--model_name_or_path", "some/model"), {"HF_HUB_CACHE": "../private/hub"}),
    (("--dataset", "../private/data.json", "--train_file", "../private/data.json"), {}),
    (("--model_name_or_path", "some/model"), {"HOME": "../private"}),
]
ENTERED = [((*LAUNCH, "--runs", "../readonly", *JOB, *words), env) for words, env in READ]
LIMITED = ((*LAUNCH, "--runs", "runs", "--json", *JOB), {"NPROC": "0"})
MINE = ("ladder", "--strategies", "../mine")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def said(open_folder) -> list[Said]:
    """Return what each command says to nobody, whose folder lies beside two of root's.

    It may not write into one of them and not enter the other. A job's Python is a program that
    answers nothing: no job is started.
    """
    folder = open_folder
    modes = {"home": 0o755, "readonly": 0o555, "private": 0o700, "mine": 0o755}
    for one, mode in modes.items():
        (folder / one).mkdir()
        (folder / one).chmod(mode)
    (folder / "home" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (folder / "home" / "python3").chmod(0o755)
    (folder / "home" / "job.py").write_text("")
    (folder / "private" / "run").mkdir()
    (folder / "private" / "run" / "events.jsonl").write_text("{}\n")
    (folder / "private" / "train.yaml").write_text(CONFIG)
    (folder / "mine" / "999_mine.py").write_text(STRATEGY)
    (folder / "mine" / "999_mine.py").chmod(0o644)
    os.chown(folder / "home", 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        input=json.dumps([*((words, {}) for words, _ in REFUSED), *ENTERED, LIMITED, (MINE, {})]),
        cwd=folder / "home", capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "XDG_DATA_HOME": "data"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (folder / "readonly" / "run").exists()
    return [Said(*answer) for answer in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda n: " ".join(REFUSED[n][0]))
def test_what_may_not_be_used_is_refused_by_its_name(said, number):
    done, what = said[number], REFUSED[number][1]
    assert done.code == 2, done.err
    assert what in done.err


@pytest.mark.parametrize("number", range(len(ENTERED)), ids=lambda n: str(READ[n]))
def test_what_only_a_prediction_reads_stops_no_launch(said, number):
    done = said[len(REFUSED) + number]
    assert done.code == 2
    assert "cannot write to the run folder: Permission denied" in done.err


def test_a_limit_on_processes_that_oomguard_itself_meets_is_named(said):
    done = said[-2]
    assert done.code == 2, done.err
    assert "the limit on processes and threads is reached: none can be started" in done.err
    assert "ulimit -u" in json.loads(done.out)["error"]["next"]


def test_strategies_of_another_user_that_can_be_read_are_used(said):
    done = said[-1]
    assert done.code == 0, done.err
    assert "mine" in done.out.splitlines()[-2].split()
