"""A real Trainer whose oomguard is killed has the loss curve of one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_fidelity import FIRST, STEPS, hf, uneven_samples

PATIENCE_S = 300.0
OOMGUARD = (sys.executable, "-m", "oomguard")


def losses(output: Path) -> dict[int, float]:
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}


def test_killed_in_the_middle_and_resumed_its_losses_are_the_same(tmp_path):
    job = hf(tmp_path)
    uneven_samples(job, FIRST)
    alone = subprocess.run(
        job.by_hand(4), cwd=tmp_path, env=dict(job.env), capture_output=True, check=False
    )
    assert alone.returncode == 0, alone.stderr[-2000:]
    for samples in tmp_path.glob("samples-*.txt"):
        samples.unlink()

    live = subprocess.Popen(
        [*OOMGUARD, "launch", job.config.name, "--name", "run"],
        cwd=tmp_path,
        env=dict(job.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "out" / "checkpoint-8" / "trainer_state.json").exists():
        assert live.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    live.kill()
    assert live.wait(PATIENCE_S) == -signal.SIGKILL

    run = tmp_path / "oomguard-runs" / "run"
    resumed = subprocess.run(
        [*OOMGUARD, "resume", str(run)],
        cwd=tmp_path, env=dict(job.env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    first, second = json.loads((run / "fit-report.json").read_text())["attempts"]
    assert first["verdict"]["kind"] == "interrupted"
    assert second["begins"]["checkpoint"]["step"] >= 4
    assert second["plan"] == first["plan"]
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "never4"), rel=1e-6)
