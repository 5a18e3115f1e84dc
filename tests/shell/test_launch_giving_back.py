"""`oomguard launch --relax` and `--grow` to their ends, with a job that is no framework's.

A micro batch of 8 is too much for it; it waits to be stopped where it expects that.
"""

from __future__ import annotations

import json
import sys

import pytest

from shell.launches import REPORT, TORCH_OOM, launch

JOB = f"""
import argparse, os, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
parser.add_argument("--max_length", type=int)
parser.add_argument("--output_dir", default="out")
given, _ = parser.parse_known_args()
{REPORT}
if given.per_device_train_batch_size > 4:
    report("oom", exception="RuntimeError", message={TORCH_OOM!r}, phase="forward")
    raise RuntimeError({TORCH_OOM!r})
short = int(os.environ.get("STEPS", "0"))
for number in range(1, (short or 2) + 1):
    step(number)
if short:
    raise SystemExit
seen = pathlib.Path(f"{{given.per_device_train_batch_size}}-{{given.max_length}}")
expected = {{"again": seen.exists(), "whole": given.max_length == 512, "cut": True}}
seen.touch()
if not expected[os.environ["GOES_ON"]]:
    time.sleep(600)
step(3)
print("done")
"""
ASKED = ("--per_device_train_batch_size", "16", "--max_length", "512")
TWO = ("--ladder", "cut_cutoff_len,halve_micro_batch")


@pytest.fixture
def run(tmp_path):
    def start(goes_on, *options, **env):
        (tmp_path / "train.py").write_text(JOB)
        command = (*TWO, *options, "--", sys.executable, "train.py", *ASKED)
        return launch(tmp_path, *command, env={"GOES_ON": goes_on, **env})

    return start


def sizes(ended):
    plans = [event["plan"] for event in ended.events() if event["event"] == "planned"]
    return [(plan["micro_batch"], plan["sequence_length"]) for plan in plans]


def test_a_cut_that_was_not_needed_is_given_back(run):
    ended = run("whole")
    assert ended.code == 0, ended.err
    assert sizes(ended) == [(16, 512), (16, 256), (8, 256), (4, 256), (4, 512)]
    assert "retrying without cut_cutoff_len" in ended.err
    assert ended.report["fidelity"] == "same_math"
    assert json.loads((ended.run / "fit-report.json").read_text())["final"]["micro_batch"] == 4


@pytest.mark.parametrize("steps", ["1", "2"])
def test_a_job_that_is_over_before_it_could_be_stopped_gives_back_as_well(run, steps):
    ended = run("whole", STEPS=steps)
    assert ended.code == 0, ended.err
    assert sizes(ended) == [(16, 512), (16, 256), (8, 256), (4, 256), (4, 512)]
    assert "retrying without cut_cutoff_len" in ended.err
    assert ended.report["fidelity"] == "same_math"
    assert ended.report["final"]["sequence_length"] == 512


def test_nothing_is_given_back_where_that_is_not_wanted(run):
    ended = run("cut", "--no-relax")
    assert ended.code == 0, ended.err
    assert sizes(ended) == [(16, 512), (16, 256), (8, 256), (4, 256)]
    (started,) = [event for event in ended.events() if event["event"] == "run_started"]
    assert started["limits"]["relax"] is False


def test_growing_goes_up_until_it_fails_and_back_to_the_best(run):
    ended = run("again", "--grow")
    assert ended.code == 0, ended.err
    assert sizes(ended) == [
        *[(1, 256), (1, 512), (2, 512), (4, 512)],
        *[(8, 512), (4, 512)],
    ]
    assert "smaller changes do not fit" in ended.err


def test_growing_without_the_reporter_is_refused(run):
    ended = run("again", "--grow", "--no-monitor")
    assert ended.code == 2
    assert "Remove --no-monitor" in ended.err
