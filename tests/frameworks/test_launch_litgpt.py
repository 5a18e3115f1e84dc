"""A real LitGPT LoRA job, the recipe's twin, from out of memory to trained."""

from __future__ import annotations

import json

import pytest
import yaml
from caps import run_capped
from jobs import GLOBAL_BATCH, cap_bytes
from launched import again, cap_for, changed_lines, check_failed_once, launch
from recipes import path_of, recipe_job


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    job = recipe_job("litgpt/tiny.yaml", "litgpt", "litgpt", tmp_path_factory.mktemp("litgpt"))
    return launch(job, path_of(job), "--host-memory", str(cap_bytes(job)))


def test_it_runs_out_at_16_and_8_and_is_trained_at_4(walk):
    assert walk.code == 0, walk.err
    assert walk.micro_batches == [16, 8, 4]
    assert walk.kinds == ["host_oom", "host_oom", "ok"]
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert (walk.job.folder / "out" / "litgpt" / "final" / "lit_model.pth.lora").exists()


def test_the_global_batch_is_the_same_in_every_attempt(walk):
    plans = [attempt["plan"] for attempt in walk.attempts]
    assert [plan["micro_batch"] * plan["accumulation"] for plan in plans] == [GLOBAL_BATCH] * 3
    assert [config["train"]["global_batch_size"] for config in walk.configs()] == [GLOBAL_BATCH] * 3
    assert [config["train"]["micro_batch_size"] for config in walk.configs()] == [16, 8, 4]


def test_its_last_config_differs_from_the_users_in_what_was_changed(walk):
    assert changed_lines(walk.job.config, walk.final) == ["  micro_batch_size: 4  # all at once"]


def test_the_final_config_trains_by_hand_under_the_same_cap(walk):
    job = walk.job
    trained = job.folder / "out" / "litgpt" / "final" / "lit_model.pth.lora"
    trained.unlink()
    argv = (*job.argv[:-1], str(walk.final))
    done = run_capped(argv, cwd=job.folder, env=job.env, cap_bytes=cap_bytes(job))
    assert done.returncode == 0, done.stdout[-2000:]
    assert trained.exists()


def test_a_file_that_says_its_command_and_its_cap_is_enough(walk, tmp_path):
    job = again(walk.job, tmp_path)
    # The flag of the command beats the file: it is the flag that is edited.
    words = [job.argv[0], "finetune_lora", "tiny/litgpt/model", "--train.micro_batch_size", "16"]
    block = f"oomguard:\n  command: {json.dumps(words)}\n  host_memory: {cap_for(job, 12)}\n"
    text = job.config.read_text().replace("micro_batch_size: 16", "micro_batch_size: 1")
    job.config.write_text(block + text)
    launched = launch(job, job.config.name)
    assert launched.code == 0, launched.err
    assert launched.micro_batches == [16, 8]
    assert launched.kinds == ["host_oom", "ok"]
    assert "--train.micro_batch_size 8" in launched.report["command"]
    assert "oomguard" not in yaml.safe_load(launched.final.read_text())


def test_an_option_that_needs_cuda_is_the_jobs_own_error(walk, tmp_path):
    job = again(walk.job, tmp_path)
    quantized = ("--quantize", "bnb.nf4", "--precision", "bf16-true")
    launched = launch(job, "--", *job.argv, *quantized)
    assert launched.code == 1
    own = launched.attempts[0]["verdict"]["root"]
    check_failed_once(launched, own)
    assert own in (launched.attempt(1) / "log.txt").read_text()
