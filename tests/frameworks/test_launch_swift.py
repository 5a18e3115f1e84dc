"""Real jobs of ms-swift from out of memory to trained: `swift sft`, and `swift rlhf` on pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes, swift_job, swift_pairs_job
from launched import Launched, changed_lines, launch

# Its environment is not built beforehand.
pytestmark = [pytest.mark.extended, pytest.mark.timeout(3600)]
MAKE = {"sft": swift_job, "rlhf": swift_pairs_job}


@pytest.fixture(scope="module", params=MAKE)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    job = MAKE[request.param](tmp_path_factory.mktemp(request.param))
    cap = f"--host-memory={cap_bytes(job)}"
    return launch(job, cap, "--ladder", "halve_micro_batch", "--", *job.argv)


def checkpoint(walk: Launched) -> Path:
    return walk.job.folder / "out" / "checkpoint-3"


def test_it_runs_out_and_is_trained_as_what_it_is(walk: Launched) -> None:
    assert walk.code == 0, walk.err[-3000:]
    assert (walk.micro_batches, walk.kinds) == ([16, 8, 4], ["host_oom", "host_oom", "ok"])
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert (checkpoint(walk) / "adapter_model.safetensors").exists()
    command = json.loads((walk.attempt(3) / "command.json").read_text())
    assert command["argv"][:2] == list(walk.job.argv[:2])


def test_the_global_batch_stays_and_pairs_are_whole(walk: Launched) -> None:
    config = yaml.safe_load(walk.final.read_text())
    sizes = config["per_device_train_batch_size"], config["gradient_accumulation_steps"]
    assert sizes == (4, GLOBAL_BATCH // 4)
    state = json.loads((checkpoint(walk) / "trainer_state.json").read_text())
    assert (state["train_batch_size"], state["global_step"]) == (4, 3)
    assert state["epoch"] == pytest.approx(3 * GLOBAL_BATCH / 64)
    lines = (walk.attempt(3) / "memory.jsonl").read_text().splitlines()
    shapes = [shape for line in lines if (shape := json.loads(line).get("shapes"))]
    rows = 2 if walk.job.name == "swift-rlhf" else 1
    assert {shape["input_ids"][0] for shape in shapes} == {4 * rows}


def test_the_final_config_is_the_users_own_but_for_what_was_changed(walk: Launched) -> None:
    assert changed_lines(walk.job.config, walk.final) == [
        "per_device_train_batch_size: 4  # all at once",
        "gradient_accumulation_steps: 4",
    ]


def test_the_final_command_trains_by_hand_under_the_same_cap(walk: Launched) -> None:
    weights = checkpoint(walk) / "adapter_model.safetensors"
    weights.unlink()
    cap = cap_bytes(walk.job)
    done = run_capped(walk.final_command(), cwd=walk.job.folder, env=walk.job.env, cap_bytes=cap)
    assert done.returncode == 0, done.stdout[-2000:]
    assert weights.exists()
