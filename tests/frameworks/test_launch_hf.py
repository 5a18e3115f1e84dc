"""Real scripts on Hugging Face's Trainer, from out of memory to trained, and other ends."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes, hf_job
from launched import (
    SAMPLE_BYTES,
    again,
    cap_for,
    changed_lines,
    check_failed_once,
    launch,
    start,
    wait,
)

from shell.process_attempts import needs_cgroup

SCRIPT = str(Path(__file__).with_name("trainer_script.py"))
FLAGS = (
    *("--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "True"),
    *("--report_to", "none", "--save_strategy", "no", "--logging_steps", "1"),
)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    job = hf_job(tmp_path_factory.mktemp("hf"))
    return launch(job, "train.yaml", "--host-memory", str(cap_bytes(job)))


@pytest.fixture
def job(walk, tmp_path):
    """The same job in a folder of its own."""
    return again(walk.job, tmp_path)


def script(job, micro=16, **flags):
    """Return the command of the script that goes wrong on purpose."""
    batch = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": GLOBAL_BATCH // micro,
    }
    words = [word for key, value in (batch | flags).items() for word in (f"--{key}", str(value))]
    return (str(job.python), SCRIPT, *FLAGS, *words)


def lengths(*tokens):
    return ("--lengths", *map(str, tokens), "--max_steps", str(len(tokens)))


def test_it_runs_out_at_16_and_8_and_is_trained_at_4(walk):
    assert walk.code == 0, walk.err
    assert walk.micro_batches == [16, 8, 4]
    assert walk.kinds == ["host_oom", "host_oom", "ok"]
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert (walk.job.folder / "out" / "adapter_model.safetensors").exists()


def test_what_failed_is_known_from_inside(walk):
    for attempt in walk.attempts[:2]:
        verdict = attempt["verdict"]
        assert verdict["evidence"][0]["witness"] == "inside"
        assert verdict["confidence"] == "high"
        assert verdict["phase"] in ("forward", "backward")
        assert verdict["requested_bytes"] >= SAMPLE_BYTES


def test_the_global_batch_is_the_same_in_every_attempt(walk):
    plans = [attempt["plan"] for attempt in walk.attempts]
    assert [plan["micro_batch"] * plan["accumulation"] for plan in plans] == [GLOBAL_BATCH] * 3
    products = [
        config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        for config in walk.configs()
    ]
    assert products == [GLOBAL_BATCH] * 3


def test_its_last_config_differs_from_the_users_in_what_was_changed(walk):
    assert changed_lines(walk.job.config, walk.final) == [
        "per_device_train_batch_size: 4  # all at once",
        "gradient_accumulation_steps: 4",
    ]


def test_the_final_command_trains_by_hand_under_the_same_cap(walk):
    job = walk.job
    adapter = job.folder / "out" / "adapter_model.safetensors"
    adapter.unlink()
    cap = cap_bytes(job)
    done = run_capped(walk.final_command(), cwd=job.folder, env=job.env, cap_bytes=cap)
    assert done.returncode == 0, done.stdout[-2000:]
    assert adapter.exists()


def test_without_the_reporter_the_text_is_enough(job):
    cap = str(cap_for(job, 12))
    launched = launch(job, "--no-monitor", "--host-memory", cap, "--", *job.argv)
    assert launched.code == 0, launched.err
    assert (launched.micro_batches, launched.kinds) == ([16, 8], ["host_oom", "ok"])
    witnesses = {found["witness"] for found in launched.attempts[0]["verdict"]["evidence"]}
    assert witnesses <= {"log", "exit"}
    assert launched.attempts[0]["verdict"]["requested_bytes"] >= SAMPLE_BYTES


@needs_cgroup
def test_a_kill_by_the_kernel_is_a_shortage_by_the_kernels_own_count(walk, job):
    # What 4 samples were seen to take, and half of what 4 more would.
    cap = walk.attempts[-1]["host_peak_bytes"] + 2 * SAMPLE_BYTES
    launched = launch(job, "train.yaml", "--host-memory", str(cap), "--host-memory-by", "cgroup")
    assert launched.code == 0, launched.err
    first = launched.attempts[0]
    assert first["returncode"] == -signal.SIGKILL
    assert (first["verdict"]["kind"], first["verdict"]["confidence"]) == ("host_oom", "high")
    assert first["verdict"]["evidence"][0]["witness"] == "kernel"
    assert launched.micro_batches[0] == 16
    assert launched.micro_batches[-1] < 16
    assert launched.kinds[-1] == "ok"
    plans = [attempt["plan"] for attempt in launched.attempts]
    assert {plan["micro_batch"] * plan["accumulation"] for plan in plans} == {GLOBAL_BATCH}


def test_a_kill_from_outside_is_no_shortage(job):
    process = start(job, "--", *job.by_hand(1), "--max_steps", "1000")
    pid = _pid_of_a_job_that_steps(job, process)
    os.kill(pid, signal.SIGKILL)
    launched = wait(job, process)
    check_failed_once(launched, "nothing shows", kind="unknown")
    assert launched.attempts[0]["returncode"] == -signal.SIGKILL


def _pid_of_a_job_that_steps(job, process):
    events = job.folder / "oomguard-runs" / "run" / "events.jsonl"
    while process.poll() is None:
        text = events.read_text() if events.exists() else ""
        seen = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if any(event["event"] == "progress" and event["step"] for event in seen):
            return next(event["pid"] for event in seen if event["event"] == "started")
        time.sleep(0.05)
    raise AssertionError(process.communicate())


def test_a_first_step_that_passes_is_no_fit_when_the_second_one_runs_out(job):
    argv = (*script(job), *lengths(16, 256, 256))
    launched = launch(job, "--host-memory", str(cap_for(job, 12)), "--", *argv)
    assert launched.code == 0, launched.err
    assert (launched.micro_batches, launched.kinds) == ([16, 8], ["host_oom", "ok"])
    assert [attempt["optimizer_steps"] for attempt in launched.attempts] == [1, 3]
    assert launched.attempts[0]["verdict"]["step"] == 1
    assert "after 1 optimizer step:" in launched.err


def test_an_abort_at_a_loss_that_is_nan_is_the_jobs_own_error(job):
    argv = (*script(job, micro=2, nan_after=1), *lengths(16, 16, 16))
    launched = launch(job, "--", *argv)
    check_failed_once(launched, "FloatingPointError: loss is nan at step 1")
    assert launched.attempts[0]["optimizer_steps"] == 1


def test_when_no_rung_is_left_the_report_says_what_was_tried_and_what_was_missing(job):
    cap = cap_for(job, 1) - SAMPLE_BYTES // 2
    argv = (*script(job, micro=2), *lengths(256))
    launched = launch(job, "--host-memory", str(cap), "--ladder", "halve_micro_batch", "--", *argv)
    assert launched.code == 3, launched.err
    assert launched.micro_batches == [2, 1]
    report = launched.report
    assert (report["status"], report["final"]) == ("exhausted", None)
    assert report["not_taken"] == [
        {"strategy": "halve_micro_batch", "reason": "the micro batch is 1"}
    ]
    assert report["requested_bytes"] >= SAMPLE_BYTES // 3
    assert "skipped (--verbose lists the reasons)" in launched.err
