"""Real torchtune jobs from out of memory to trained: LoRA (the recipe's twin), the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jobs import cap_bytes
from launched import again, changed_lines, launch
from recipes import path_of, recipe_job

RECIPE = "torchtune/tiny.yaml"
SPLIT = ["batch_size: 4  # all at once", "gradient_accumulation_steps: 2"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    job = recipe_job(RECIPE, "torchtune", "torchtune", tmp_path_factory.mktemp("torchtune"))
    return launch(job, path_of(job), "--host-memory", str(cap_bytes(job)))


def check(walk, trained):
    assert walk.code == 0, walk.err
    assert walk.kinds == ["host_oom", "ok"]
    assert walk.micro_batches == [8, 4]
    assert [config["batch_size"] for config in walk.configs()] == [8, 4]
    plans = [attempt["plan"] for attempt in walk.attempts]
    assert [plan["micro_batch"] * plan["accumulation"] for plan in plans] == [8, 8]
    assert "can't allocate memory" in (walk.attempt(1) / "log.txt").read_text()
    assert walk.attempts[-1]["optimizer_steps"] == 3
    assert changed_lines(walk.job.config, walk.final) == SPLIT
    assert (walk.job.folder / "out" / "torchtune" / "epoch_0" / trained).exists()


def test_lora_runs_out_at_8_and_is_trained_at_4(walk):
    check(walk, "adapter_model.safetensors")
    (command,) = walk.final_command()[-1:]
    assert "tune run lora_finetune_single_device" in command


@pytest.mark.extended
def test_so_does_the_whole_model_in_its_own_recipe(walk, tmp_path):
    job = again(walk.job, tmp_path)
    text = walk.job.config.read_text().replace(".lora_llama2", ".llama2")
    lines = [line for line in text.splitlines(keepends=True) if "lora_" not in line]
    job.config.write_text("".join(lines) + "optimizer_in_bwd: false\n")
    argv = tuple(word.replace("lora_f", "full_f") for word in job.argv)
    job = replace(job, name="torchtune-full", argv=(*argv[:-1], job.config.name))
    walk = launch(job, job.config.name, "--host-memory", str(cap_bytes(job)))
    check(walk, "model-00001-of-00001.safetensors")
