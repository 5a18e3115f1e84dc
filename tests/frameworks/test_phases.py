"""A real Trainer that runs out of memory outside its training steps, or is told to go.

The remedy is that of the phase: what the training is made of stays, and what was saved by then is
not trained again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from caps import peak_data_bytes
from jobs import hf_job
from launched import OOMGUARD, again, launch

from shell.process_attempts import needs_cgroup

HERE = Path(__file__).parent
STEPS = 4
FLAGS = (
    *("--model_name_or_path", "model", "--use_cpu", "True", "--report_to", "none"),
    *("--logging_steps", "1", "--save_strategy", "steps", "--per_device_train_batch_size", "2"),
    *("--max_steps", str(STEPS), "--lengths", *["16"] * STEPS),
)
LADDER = ("--ladder", "fewer_preprocess_workers,halve_eval_batch,halve_micro_batch")
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return hf_job(tmp_path_factory.mktemp("phases"))


def script(job, *flags):
    return (str(job.python), str(HERE / "trainer_script.py"), *FLAGS, *flags)


def peak_bytes(job, argv, *flags):
    return peak_data_bytes((*argv, *flags), cwd=job.folder, env=job.env)


def test_in_an_evaluation_its_batch_is_halved_and_the_training_goes_on_as_it_was(job, tmp_path):
    job = again(job, tmp_path)
    evaluated = ("--eval_length", "256", "--eval_strategy", "steps", "--eval_steps", "2")
    argv = script(job, *evaluated, "--save_steps", "1")
    cap_bytes = sum(
        peak_bytes(job, argv, "--output_dir", "measured", "--per_device_eval_batch_size", size)
        for size in ("8", "4")
    ) // 2  # fmt: skip
    asked = (*argv, "--output_dir", "out", "--per_device_eval_batch_size", "8")
    found = launch(job, "--host-memory", str(cap_bytes), *LADDER, "--", *asked)
    assert found.code == 0, found.err[-3000:]
    assert found.kinds == ["host_oom", "ok"]
    first, last = found.attempts
    assert first["verdict"]["phase"] == "eval"
    assert last["plan"] == {**first["plan"], "eval_batch": 4}
    assert last["begins"]["checkpoint"]["step"] == 2, "that of step 2 was due after its evaluation"
    assert last["optimizer_steps"] == STEPS - 2


def test_in_the_save_at_the_end_what_was_trained_is_saved_and_not_trained_again(job, tmp_path):
    job = again(job, tmp_path)
    argv = script(job, "--save_steps", "2", "--save_mib")
    # What one of 512 MiB takes where training has left nothing behind is what two of 256 take.
    cap_bytes = sum(peak_bytes(job, argv, mib, "--output_dir", mib) for mib in ("512", "256")) // 2
    asked = (*argv, "512", "--output_dir", "out")
    found = launch(job, "--host-memory", str(cap_bytes), *LADDER, "--", *asked)
    assert found.code == 0, found.err[-3000:]
    assert found.kinds == ["host_oom", "ok"]
    first, last = found.attempts
    assert first["verdict"]["phase"] == "save"
    assert (first["optimizer_steps"], last["optimizer_steps"]) == (STEPS, 0)
    assert last["plan"] == first["plan"]
    assert (tmp_path / "out" / "model.safetensors").exists()


@needs_cgroup
def test_while_data_is_prepared_fewer_processes_do_it_and_the_training_stays(job, tmp_path):
    job = again(job, tmp_path)
    argv = script(job, "--row_mib", "512", "--output_dir", "out", "--preprocessing_num_workers")
    alone = launch(job, "--", *argv, "1").attempts[0]["host_peak_bytes"]
    (tmp_path / "oomguard-runs" / "run").rename(tmp_path / "measured")
    cap = ("--host-memory", str(alone + 3 * 512 * 2**20), "--host-memory-by", "cgroup")
    found = launch(job, *cap, *LADDER, "--", *argv, "4")
    assert found.code == 0, found.err[-3000:]
    assert found.kinds == ["host_oom", "ok"]
    first, last = found.attempts
    assert first["verdict"]["phase"] == "preprocess"
    assert first["verdict"]["evidence"][0]["witness"] == "kernel"
    assert last["plan"] == {**first["plan"], "preprocess_workers": 2}
    assert last["optimizer_steps"] == STEPS


def test_told_to_go_it_saves_within_its_grace_and_goes_on_from_there(job, tmp_path):
    job = again(job, tmp_path)
    steps = 60
    flags = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1000, "seed": 0}
    flags |= {"per_device_train_batch_size": 1, "max_length": 32, "enable_jit_checkpoint": True}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    slow = {"PYTHONPATH": str(HERE / "standins" / "leak"), "LEAK_MIB": "0", "STEP_S": "0.2"}
    live = subprocess.Popen(
        [*OOMGUARD, "launch", "--name", "run", "--grace", "120", "--", *job.argv, *words],
        cwd=tmp_path,
        env={**job.env, **slow},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "oomguard-runs" / "run"
    deadline = time.monotonic() + PATIENCE_S
    while '"step":3,' not in said(run):
        assert live.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(live.pid, signal.SIGTERM)
    assert live.wait(PATIENCE_S) == 130
    report = json.loads((run / "fit-report.json").read_text())
    assert report["status"] == "interrupted"
    (saved,) = (int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*"))
    assert 3 <= saved < steps

    resumed = subprocess.run(
        [*OOMGUARD, "resume", str(run)],
        cwd=tmp_path, env=dict(job.env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    first, last = json.loads((run / "fit-report.json").read_text())["attempts"]
    assert first["verdict"]["kind"] == "interrupted"
    assert last["begins"]["checkpoint"]["step"] == saved
    assert last["optimizer_steps"] == steps - saved
    state = json.loads((tmp_path / f"out/checkpoint-{steps}/trainer_state.json").read_text())
    done = [row["step"] for row in state["log_history"] if "loss" in row]
    assert done == list(range(1, steps + 1))


def said(run: Path) -> str:
    events = run / "events.jsonl"
    return events.read_text() if events.exists() else ""
