"""A real LLaMA-Factory LoRA job from out of memory to trained."""

from __future__ import annotations

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes, llamafactory_job
from launched import again, cap_for, changed_lines, check_failed_once, edit, launch


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    job = llamafactory_job(tmp_path_factory.mktemp("llamafactory"))
    return launch(job, "train.yaml", "--host-memory", str(cap_bytes(job)))


def test_it_runs_out_at_16_and_8_and_is_trained_at_4(walk):
    assert walk.code == 0, walk.err
    assert walk.micro_batches == [16, 8, 4]
    assert walk.kinds == ["host_oom", "host_oom", "ok"]
    assert [attempt["verdict"]["requested_bytes"] for attempt in walk.attempts[:2]] > [0, 0]
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert (walk.job.folder / "out" / "adapter_model.safetensors").exists()


def test_the_global_batch_is_the_same_in_every_attempt(walk):
    plans = [attempt["plan"] for attempt in walk.attempts]
    assert [plan["micro_batch"] * plan["accumulation"] for plan in plans] == [GLOBAL_BATCH] * 3
    products = [
        config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        for config in walk.configs()
    ]
    assert products == [GLOBAL_BATCH] * 3


def test_its_first_config_is_the_users_own_and_its_last_one_differs_in_what_was_changed(walk):
    user = walk.job.config
    assert (walk.attempt(1) / "train.yaml").read_text() == user.read_text()
    assert changed_lines(user, walk.final) == [
        "per_device_train_batch_size: 4  # all at once",
        "gradient_accumulation_steps: 4",
    ]
    assert len(walk.final.read_text().splitlines()) == len(user.read_text().splitlines())


def test_the_final_config_trains_by_hand_under_the_same_cap(walk):
    job = walk.job
    adapter = job.folder / "out" / "adapter_model.safetensors"
    adapter.unlink()
    argv = (job.argv[0], "train", str(walk.final))
    done = run_capped(argv, cwd=job.folder, env=job.env, cap_bytes=cap_bytes(job))
    assert done.returncode == 0, done.stdout[-2000:]
    assert adapter.exists()


def test_a_setting_on_the_command_line_beats_the_file_and_is_what_changes(walk, tmp_path):
    job = again(walk.job, tmp_path)
    cap = str(cap_for(job, 12))
    edit(job, "batch_size: 16", "batch_size: 2")
    wrapped = launch(job, "--host-memory", cap, "--", *job.argv, "per_device_train_batch_size=16")
    assert wrapped.code == 0, wrapped.err
    assert wrapped.micro_batches == [16, 8]
    assert [attempt["plan"]["accumulation"] for attempt in wrapped.attempts] == [1, 2]
    assert wrapped.kinds == ["host_oom", "ok"]
    command = wrapped.report["command"]
    assert "per_device_train_batch_size=8" in command
    # The settings of the file that win are changed in the file; the other one stays as it was.
    final = yaml.safe_load(wrapped.final.read_text())
    assert (final["per_device_train_batch_size"], final["gradient_accumulation_steps"]) == (2, 2)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("max_steps: 3", "max_stepz: 3", "max_stepz"),
        ("dataset: tiny", "dataset: nope", "nope"),
    ],
)
def test_a_typo_and_a_missing_dataset_are_the_jobs_own_errors(
    walk, tmp_path, before, after, message
):
    job = again(walk.job, tmp_path)
    edit(job, before, after)
    check_failed_once(launch(job, "train.yaml"), message)
