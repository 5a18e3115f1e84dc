"""Memory that grows with each new length of a batch: named, and no data is cut for it.

In a plain loop, and in LitGPT in bf16, whose job ends after few optimizer steps of many lengths.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from caps import peak_data_bytes
from environments import environment
from launched import launch
from recipes import recipe_job

SCRIPT = Path(__file__).with_name("new_lengths.py")
STEPS, FITS_STEPS, GROWS_BYTES = 24, 12, 8 << 20
LADDER = ("--ladder", "halve_micro_batch,cut_cutoff_len", "--no-relax")
BOUNDED = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}


def command(*flags: str) -> tuple[str, ...]:
    sizes = ("--per_device_train_batch_size", "2", "--max_length", "512")
    return (str(environment("hf")), str(SCRIPT), *sizes, "--max_steps", str(STEPS), *flags)


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def cap_bytes(tmp_path_factory) -> int:
    """Return the peak of a job half as long, which the whole one exceeds by growing."""
    folder = tmp_path_factory.mktemp("measured")
    peaks = [
        peak_data_bytes(command("--max_steps", str(steps)), cwd=folder, env=environ())
        for steps in (FITS_STEPS, STEPS)
    ]
    if peaks[1] - peaks[0] < (STEPS - FITS_STEPS) * GROWS_BYTES:
        pytest.skip("this CPU computes bf16 without kernels for each shape")
    return peaks[0]


def launched(folder: Path, cap_bytes: int, *flags: str, **env: str):
    job = SimpleNamespace(folder=folder, env=environ(**env))
    return launch(job, "--host-memory", str(cap_bytes), *LADDER, "--", *command(*flags))


def test_growth_is_the_cause_and_no_sample_is_cut(tmp_path, cap_bytes):
    run = launched(tmp_path, cap_bytes)
    assert run.code == 3, run.err
    verdicts = [attempt["verdict"] for attempt in run.attempts]
    assert {(one["kind"], one["cause"]) for one in verdicts} == {("host_oom", "growth")}
    assert {attempt["plan"]["sequence_length"] for attempt in run.attempts} == {512}
    assert "the data is not the cause" in run.err
    assert " ".join(f"{name}={value}" for name, value in BOUNDED.items()) in run.err


def test_with_the_bounds_that_it_names_the_job_trains_as_it_is(tmp_path, cap_bytes):
    run = launched(tmp_path, cap_bytes, **BOUNDED)
    assert run.code == 0, run.err
    assert len(run.attempts) == 1
    assert "memory grows" not in run.err


def test_the_same_lengths_in_fp32_are_no_growth(tmp_path):
    run = launched(tmp_path, 4 << 30, "--dtype", "float32")
    assert run.code == 0, run.err
    assert "memory grows" not in run.err


def litgpt_flags(steps: int) -> tuple[str, ...]:
    sizes = ("--train.micro_batch_size", "1", "--train.max_seq_length", "512")
    return ("--precision", "bf16-true", *sizes, "--train.max_steps", str(steps))


@pytest.mark.extended
def test_litgpt_in_bf16_keeps_its_512_tokens(tmp_path, cap_bytes):
    """`cap_bytes` is asked for only to skip where a CPU keeps no kernels."""
    assert cap_bytes
    job = recipe_job("litgpt/tiny.yaml", "litgpt", "litgpt", tmp_path)
    noise = random.Random(1)
    texts = [" ".join(["hill"] * noise.randint(20, 480)) for _ in range(120)]
    samples = [{"instruction": "Describe", "input": "", "output": text} for text in texts]
    (tmp_path / "tiny" / "litgpt" / "data" / "train.json").write_text(json.dumps(samples))
    short = (*job.argv, *litgpt_flags(2))
    cap = peak_data_bytes(short, cwd=tmp_path, env=job.env)
    words = (*job.argv, *litgpt_flags(6))
    run = launch(job, "--host-memory", str(cap), "--ladder", "cut_cutoff_len", "--", *words)
    assert run.code == 3, run.err
    (only,) = run.attempts
    assert (only["verdict"]["kind"], only["verdict"]["cause"]) == ("host_oom", "growth")
    assert only["optimizer_steps"] < 6
    assert only["plan"]["sequence_length"] == 512
    assert "the data is not the cause" in run.err
