"""LLaMA-Factory's preference stages for real: out of memory, down the ladder, trained."""

from __future__ import annotations

import json

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes, llamafactory_pairs_job
from launched import Launched, launch

pytestmark = [pytest.mark.extended, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=["dpo", "rm", "kto"])
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    job = llamafactory_pairs_job(request.param, tmp_path_factory.mktemp(request.param))
    return launch(job, "train.yaml", "--host-memory", str(cap_bytes(job)))


def test_it_runs_out_and_is_trained_as_what_it_is(walk: Launched) -> None:
    assert walk.code == 0, walk.err[-3000:]
    assert (walk.micro_batches, walk.kinds) == ([16, 8, 4], ["host_oom", "host_oom", "ok"])
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert {config["stage"] for config in walk.configs()} == {walk.job.name.split("-")[1]}


def test_every_step_has_the_samples_of_the_global_batch(walk: Launched) -> None:
    config = yaml.safe_load(walk.final.read_text())
    sizes = config["per_device_train_batch_size"], config["gradient_accumulation_steps"]
    assert sizes[0] * sizes[1] == GLOBAL_BATCH
    state = json.loads((walk.job.folder / "out" / "trainer_state.json").read_text())
    assert (state["train_batch_size"], state["global_step"]) == (4, 3)
    assert state["epoch"] == pytest.approx(3 * GLOBAL_BATCH / 64)
    assert [entry["step"] for entry in state["log_history"]][:3] == [1, 2, 3]


def test_the_final_config_trains_by_hand_under_the_same_cap(walk: Launched) -> None:
    weights = walk.job.folder / "out" / "adapter_model.safetensors"
    weights.unlink()
    argv = (walk.job.argv[0], "train", str(walk.final))
    done = run_capped(argv, cwd=walk.job.folder, env=walk.job.env, cap_bytes=cap_bytes(walk.job))
    assert done.returncode == 0, done.stdout[-2000:]
    assert weights.exists()
