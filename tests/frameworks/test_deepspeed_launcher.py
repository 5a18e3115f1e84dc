"""Two ranks that the DeepSpeed launcher starts: out of memory, then trained, then by hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import environment
from ranks import cap_bytes, events, launch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the job of two ranks under a cap that six samples fit in; return its folder."""
    folder = tmp_path_factory.mktemp("deepspeed")
    python = environment("llamafactory")
    ranks = ("deepspeed", "--num_gpus", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        ended = launch(
            folder, python, "--no-predict", "--host-memory", str(cap_bytes(python)), ranks=ranks
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        yield folder


def test_the_rank_that_ran_out_is_the_cause_and_the_launcher_is_stopped_with_both(run: Path):
    first, *_ = events(run, "exited")
    assert (first["verdict"]["kind"], first["verdict"]["rank"]) == ("host_oom", 1)
    assert len(events(run, "planned")) == 2


def test_both_ranks_are_trained_with_the_global_batch_that_was_asked_for(run: Path):
    report = json.loads((run / "oomguard-runs" / "run" / "fit-report.json").read_text())
    assert report["global_batch"] == 16
    assert (report["final"]["micro_batch"], report["final"]["accumulation"]) == (4, 2)
    assert report["attempts"][-1]["optimizer_steps"] == 4


def test_the_final_command_trains_by_hand(run: Path):
    command = (run / "oomguard-runs" / "run" / "final" / "command.txt").read_text().splitlines()[-1]
    ended = subprocess.run(
        ["sh", "-c", command], cwd=run, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("step 4") == 2
