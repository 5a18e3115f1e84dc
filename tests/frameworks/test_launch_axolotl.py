"""A real job of `axolotl train` from out of memory to trained, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, axolotl_job, cap_bytes
from launched import Launched, changed_lines, launch

# Its environment is not built beforehand.
pytestmark = [pytest.mark.extended, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    job = axolotl_job(tmp_path_factory.mktemp("axolotl"))
    cap = f"--host-memory={cap_bytes(job)}"
    return launch(job, cap, "--ladder", "halve_micro_batch", "--", *job.argv)


def weights(walk: Launched) -> Path:
    return walk.job.folder / "out" / "adapter_model.safetensors"


def test_it_runs_out_and_is_trained_as_what_it_is(walk: Launched) -> None:
    assert walk.code == 0, walk.err[-3000:]
    assert (walk.micro_batches, walk.kinds) == ([16, 8, 4], ["host_oom", "host_oom", "ok"])
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert weights(walk).exists()
    command = json.loads((walk.attempt(3) / "command.json").read_text())
    assert command["argv"][:2] == list(walk.job.argv[:2])


def test_the_global_batch_stays(walk: Launched) -> None:
    config = yaml.safe_load(walk.final.read_text())
    sizes = config["micro_batch_size"], config["gradient_accumulation_steps"]
    assert sizes == (4, GLOBAL_BATCH // 4)
    lines = (walk.attempt(3) / "memory.jsonl").read_text().splitlines()
    shapes = [shape for line in lines if (shape := json.loads(line).get("shapes"))]
    assert {shape["input_ids"][0] for shape in shapes} == {4}


def test_the_final_config_is_the_users_own_but_for_what_was_changed(walk: Launched) -> None:
    assert changed_lines(walk.job.config, walk.final) == [
        "micro_batch_size: 4  # all at once",
        "gradient_accumulation_steps: 4",
    ]


def test_the_final_command_trains_by_hand_under_the_same_cap(walk: Launched) -> None:
    weights(walk).unlink()
    cap = cap_bytes(walk.job)
    done = run_capped(walk.final_command(), cwd=walk.job.folder, env=walk.job.env, cap_bytes=cap)
    assert done.returncode == 0, done.stdout[-2000:]
    assert weights(walk).exists()
