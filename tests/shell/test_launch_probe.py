"""`oomguard launch --probe` to its ends, with a job that is no framework's.

A micro batch of 8 is too much for its long samples, which come late; of 16 for all.
"""

from __future__ import annotations

import sys

import pytest

from core.test_probing import OK, Story
from oomguard.cli.console import Console
from shell.launches import REPORT, TORCH_OOM, launch

JOB = f"""
import argparse, os, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int)
parser.add_argument("--max_length", type=int)
parser.add_argument("--output_dir", default="out")
given, others = parser.parse_known_args()
{REPORT}
steps, length = (int(os.environ.get("OOMGUARD_PROBE_" + name, 0)) for name in ("STEPS", "LENGTH"))
print("probe" if steps else "run", given.output_dir, *others)
pathlib.Path(given.output_dir).mkdir(parents=True, exist_ok=True)
if os.environ.get("FAILS"):
    raise ValueError("the job's own fault")
for number in range(1, (steps or 5) + 1):
    late = number > 3
    if given.per_device_train_batch_size > (4 if length == 512 or late else 8):
        report("oom", exception="RuntimeError", message={TORCH_OOM!r}, phase="forward")
        raise RuntimeError({TORCH_OOM!r})
    step(number)
memory = dict(rss_bytes=1, peak_rss_bytes=2, data_bytes=1, cuda=[])
if steps:
    report("probe", steps, memory=memory, tokens=length, longest=length)
report("bye", steps or 5, memory=memory)
"""
ASKED = ("--per_device_train_batch_size", "16", "--max_length", "512")


@pytest.fixture
def run(tmp_path):
    def start(*options, **env):
        (tmp_path / "train.py").write_text(JOB)
        return launch(
            tmp_path, "--probe", *options, "--", sys.executable, "train.py", *ASKED, env=env
        )

    return start


def test_each_plan_is_probed_before_one_of_them_runs(run, tmp_path):
    ended = run()
    assert ended.code == 0, ended.err
    assert ended.micro_batches == [16, 8, 4, 4]
    assert [bool(attempt["probe"]) for attempt in ended.report["attempts"]] == [*[True] * 3, False]
    assert ended.report["attempts"][2]["longest_batch"] == 512
    assert "a probe of 2 steps on batches of 512 tokens" in ended.err
    assert "trained, in 1 attempt after 3 probes" in ended.err
    assert (tmp_path / "out").is_dir()


def test_a_probe_writes_into_a_folder_of_its_own_that_goes_with_it(run):
    ended = run()
    output = ended.run / "attempts" / "001" / "output"
    assert ended.log(1).startswith(f"probe {output}")
    assert "--save_strategy no" in ended.log(1)
    assert ended.log(4).splitlines()[0] == "run out --gradient_accumulation_steps 4"
    assert not list(ended.run.rglob("output"))


def test_without_probes_the_same_job_runs_out_late(tmp_path):
    (tmp_path / "train.py").write_text(JOB)
    ended = launch(tmp_path, "--", sys.executable, "train.py", *ASKED)
    assert ended.micro_batches == [16, 8, 4]
    assert ended.report["attempts"][1]["optimizer_steps"] == 3


def test_a_fault_of_the_jobs_own_is_left_to_the_run(run):
    ended = run(FAILS="yes")
    assert ended.code == 1
    assert [bool(attempt["probe"]) for attempt in ended.report["attempts"]] == [True, False]
    assert "probe inconclusive (ValueError: the job's own fault" in ended.err
    assert "ValueError: the job's own fault" in ended.report["reason"]


@pytest.mark.parametrize(
    ("other", "advice"), [("--no-monitor", "Remove --no-monitor"), ("--grow", "Use one")]
)
def test_what_cannot_be_probed_is_refused(run, other, advice):
    ended = run(other)
    assert ended.code == 2
    assert advice in ended.err


def test_what_was_measured_stands_beside_what_was_predicted(capsys):
    story = Story()
    story.launch(story.begin())
    story.probed()
    story.end(OK)
    exited = story.events[-2]
    Console(quiet_stdout=True).event(exited, story.record)
    said = capsys.readouterr().err
    assert "probe passed after 2 optimizer steps, peak GPU memory 19.00 GiB" in said
    assert "longest batch: 4096 tokens; allocated: 19.00 GiB measured, 20.00 GiB predicted" in said
    assert "(-5.0%)" in said
