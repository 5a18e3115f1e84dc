"""LoftQ all at once runs the host out of memory (huggingface/peft#1708); staged it fits.

The real PEFT, at reduced width and depth: with 8 bits it compares every number of a weight with
all 256 levels in fp32, 0.5 GiB for one weight of 1024 x 512, and 9 GiB for the 3072 x 3072 of
the report.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from caps import peak_data_bytes, run_capped
from jobs import TinyJob
from launched import launch
from recipes import path_of, recipe_job

MIB = 1 << 20
RESIDUALS = Path(__file__).parent / "standins" / "loftq_residuals.py"
STAGED = ("--staged", "True", "--loftq_bits", "4")  # said again, and the last one wins


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return recipe_job("peft_loftq/tiny.yaml", "loftq", "peft", tmp_path_factory.mktemp("loftq"))


def test_at_once_it_runs_out_and_staged_it_trains(job: TinyJob) -> None:
    staged = (*job.argv, *STAGED)
    cap_bytes = peak_data_bytes(staged, cwd=job.folder, env=job.env) + 256 * MIB
    ladder = ("--ladder", "low_cpu_mem_usage,stage_loftq")
    found = launch(job, path_of(job), "--host-memory", f"{cap_bytes // MIB}MiB", *ladder)
    assert found.code == 0, found.err
    steps = [step["strategy"] for attempt in found.attempts for step in attempt["steps"]]
    assert steps == ["stage_loftq"]
    assert found.kinds == ["host_oom", "ok"]
    assert found.attempts[0]["verdict"]["phase"] == "load"
    final = yaml.safe_load(found.final.read_text())
    assert (final["staged"], final["loftq_bits"]) == (True, 4)
    adapter = job.folder / "out" / "loftq" / "adapter_model.safetensors"
    adapter.unlink()
    again = run_capped(found.final_command(), cwd=job.folder, env=job.env, cap_bytes=cap_bytes)
    assert again.returncode == 0, again.stdout
    assert adapter.exists()


def test_the_staged_adapter_is_the_best_answer_to_the_quantization_error(job: TinyJob) -> None:
    argv = (job.argv[0], str(RESIDUALS), "norms.json", *job.argv[2:], *STAGED)
    subprocess.run(argv, cwd=job.folder, env=dict(job.env), check=True, capture_output=True)
    for norms in json.loads((job.folder / "norms.json").read_text()).values():
        assert norms["adapted"] == pytest.approx(norms["best"], rel=1e-3)
        assert norms["adapted"] < 0.99 * norms["alone"]
