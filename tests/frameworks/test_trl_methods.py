"""TRL's other methods for real: out of memory, down the ladder, trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes, trl_generating_job, trl_job
from launched import Launched, launch

#: Tokens of a row: a prompt ("Describe" is eight), an answer and its end.
ROW = 8 + 8 + 236 + 1
#: Tokens of each sample; where completions are generated, of a prompt and the longest of them.
GENERATED = ("grpo", "rloo")
TOKENS = {"dpo": 2 * ROW, "reward": 2 * ROW, "kto": ROW, **dict.fromkeys(GENERATED, 236 + 8)}
LONG = [pytest.mark.extended, pytest.mark.timeout(3600)]
SLOW = [pytest.param(command, marks=LONG) for command in ("kto", *GENERATED)]


@pytest.fixture(scope="module", params=["dpo", "reward", *SLOW])
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    make = trl_generating_job if request.param in GENERATED else trl_job
    job = make(request.param, tmp_path_factory.mktemp(request.param))
    cap = f"--host-memory={cap_bytes(job)}"
    return launch(job, cap, "--ladder", "halve_micro_batch", "--", *job.argv)


def test_it_runs_out_and_is_trained_as_what_it_is(walk: Launched) -> None:
    assert walk.code == 0, walk.err[-3000:]
    assert (walk.micro_batches, walk.kinds) == ([16, 8, 4], ["host_oom", "host_oom", "ok"])
    assert walk.attempts[-1]["optimizer_steps"] == 3
    command = json.loads((walk.attempt(3) / "command.json").read_text())
    assert command["argv"][:2] == list(walk.job.argv[:2])


def test_pairs_and_groups_stay_together_and_the_global_batch_stays(walk: Launched) -> None:
    config = yaml.safe_load(walk.final.read_text())
    sizes = config["per_device_train_batch_size"], config["gradient_accumulation_steps"]
    assert sizes[0] * sizes[1] == GLOBAL_BATCH
    log = (walk.attempt(3) / "log.txt").read_text()
    tokens = GLOBAL_BATCH * TOKENS[walk.job.argv[1]]
    assert f"'num_tokens': '{tokens}'" in log, log[-2000:]


def test_the_final_command_trains_by_hand_under_the_same_cap(walk: Launched) -> None:
    weights = Path(walk.job.folder, "out", "model.safetensors")
    weights.unlink()
    cap = cap_bytes(walk.job)
    done = run_capped(walk.final_command(), cwd=walk.job.folder, env=walk.job.env, cap_bytes=cap)
    assert done.returncode == 0, done.stdout[-2000:]
    assert weights.exists()
