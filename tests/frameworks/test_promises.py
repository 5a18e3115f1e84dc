"""Careless scripts: what each optimizer step consumes is counted, and its plan compared with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from environments import environment

HERE = Path(__file__).parent
#: 16 samples of 40 MiB do not fit beside torch, 8 do.
CAP = "800MiB"
TRAINER = (
    *("--output_dir", "out", "--use_cpu", "--report_to", "none", "--save_strategy", "no"),
    *("--per_device_train_batch_size", "16", "--num_train_epochs", "1", "--logging_steps", "1"),
    *("--disable_tqdm", "True"),
)


@dataclass(frozen=True)
class Launched:
    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def batches(self) -> list[tuple[int, int]]:
        plans = [attempt["plan"] for attempt in self.report["attempts"]]
        return [(plan["micro_batch"], plan["accumulation"]) for plan in plans]

    def outcome(self, of: str = "samples_per_step") -> str:
        return self.report["verified"][of]["outcome"]


def launch(folder: Path, script: str, *words: str, options: tuple[str, ...] = ()) -> Launched:
    """Run a script of this folder under the cap."""
    command = (str(environment("hf")), str(HERE / script), *words)
    own = ("--fits", "fits.json", "--no-relax", "--no-predict", "--name", "run", "--ladder")
    words = (*own, "halve_micro_batch", "--host-memory", CAP, *options, "--", *command)
    done = subprocess.run(
        [sys.executable, "-m", "oomguard", "launch", *words],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "oomguard-runs" / "run" / "fit-report.json"
    assert report.exists(), done.stderr
    return Launched(done.returncode, done.stdout, done.stderr, json.loads(report.read_text()))


def plain(folder: Path, mode: str, *words: str, options: tuple[str, ...] = ()) -> Launched:
    batch = words or ("--per_device_train_batch_size", "16")
    return launch(folder, "plain_loop.py", "--mode", mode, *batch, options=options)


def hidden(folder: Path, *words: str, options: tuple[str, ...] = ()) -> Launched:
    """Run a script with a batch of 16 of its own, for which the Trainer's 8 is taken."""
    script = folder / "hidden_default.py"
    text = (HERE / "plain_loop.py").read_text()
    script.write_text(text.replace("default=16", "default=int('16')"))
    return launch(folder, str(script), "--mode", "constant", *words, options=options)


def test_a_loop_that_follows_its_flags_is_verified(tmp_path):
    run = plain(tmp_path, "honest")
    assert (run.code, run.batches) == (0, [(16, 1), (8, 2)]), run.err
    assert run.report["verified"]["samples_per_step"]["observed"] == 16
    assert run.outcome() == "verified"
    assert run.report["fidelity"] == "same_math"
    assert "verified: 16 samples per optimizer step" in run.err


@pytest.mark.extended
def test_a_short_last_batch_is_not_an_alarm(tmp_path):
    run = plain(tmp_path, "loader")
    assert (run.code, run.outcome()) == (0, "verified"), run.err


def test_a_script_that_ignores_the_accumulation_fails_with_the_reason(tmp_path):
    run = plain(tmp_path, "unaware")
    assert (run.code, run.report["status"], run.batches) == (1, "failed", [(16, 1), (8, 2)])
    reason = run.report["reason"]
    assert "expected 16" in reason
    assert "observed 8" in reason
    assert "ignores the setting for gradient accumulation" in reason


def test_a_script_with_its_own_batch_is_not_climbed_from_a_wrong_reading(tmp_path):
    run = hidden(tmp_path, "--per_device_train_b", "16")
    assert (run.code, run.report["status"], run.batches) == (1, "failed", [(8, 1), (4, 2)])
    assert "expected 4, observed 16, as with 8 before" in run.report["reason"]


def test_the_default_of_a_scripts_own_flag_is_its_batch(tmp_path):
    run = plain(tmp_path, "constant", "--per_device_train_b", "16")
    assert (run.code, run.report["status"], run.batches) == (1, "failed", [(16, 1), (8, 2)])
    assert "expected 8, observed 16, as with 16 before" in run.report["reason"]


@pytest.mark.extended
def test_a_script_that_ignores_its_micro_batch_is_launched_twice_at_most(tmp_path):
    run = plain(tmp_path, "constant")
    assert (run.code, run.report["status"], run.batches) == (1, "failed", [(16, 1), (8, 2)])
    assert "the script ignores the setting for its micro batch" in run.report["reason"]


@pytest.mark.extended
def test_a_healthy_job_that_was_read_wrongly_trains_and_is_reported(tmp_path):
    run = hidden(tmp_path, "--seed", "1", options=("--host-memory", "4GiB"))
    assert (run.code, run.outcome()) == (0, "differs"), run.err
    assert "DONE" in run.out
    assert "expected 8" in run.err
    assert "observed 16" in run.err


def test_a_batch_that_the_job_makes_smaller_itself_ends_the_run(tmp_path):
    run = plain(tmp_path, "shrinks")
    assert (run.code, run.report["status"], run.batches) == (1, "failed", [(16, 1)])
    assert "find_executable_batch_size" in run.report["reason"]


def test_a_loss_over_the_micro_batch_is_a_new_recipe(tmp_path):
    run = plain(tmp_path, "negatives")
    assert (run.code, run.report["fidelity"]) == (0, "new_recipe"), run.err
    assert run.outcome("first_loss") == "differs"
    assert "in-batch negatives" in run.report["verified"]["first_loss"]["reason"]


@pytest.mark.extended
def test_a_loss_over_the_micro_batch_is_refused_where_only_same_math_is_allowed(tmp_path):
    run = plain(tmp_path, "negatives", options=("--allow", "same_math"))
    assert (run.code, run.report["status"]) == (3, "exhausted"), run.err
    (skip,) = run.report["not_taken"]
    assert "is a new recipe here" in skip["reason"]


def test_dropped_samples_make_other_steps_and_a_new_recipe(tmp_path):
    words = ("--samples", "108", "--dataloader_drop_last", "True")
    run = launch(tmp_path, "own_trainer.py", *words, *TRAINER, options=("--no-in-place",))
    assert (run.code, run.report["fidelity"]) == (0, "new_recipe"), run.err
    assert "7 optimizer steps" in run.err
    total = run.report["verified"]["total_steps"]
    assert (total["outcome"], total["expected"], total["observed"]) == ("differs", 6, 7)
    assert run.outcome() == "verified"


def test_a_compute_loss_that_ignores_the_number_of_items_is_a_new_recipe(tmp_path):
    run = launch(tmp_path, "own_trainer.py", "--own", "True", *TRAINER)
    assert (run.code, run.report["fidelity"]) == (0, "new_recipe"), run.err
    assert "ignores num_items_in_batch" in run.err


@pytest.mark.extended
def test_the_loss_of_the_first_step_is_compared_where_both_plans_took_it(tmp_path):
    run = launch(tmp_path, "own_trainer.py", "--late", "2", *TRAINER, options=("--no-in-place",))
    assert (run.code, run.report["fidelity"]) == (0, "same_math"), run.err
    loss = run.report["verified"]["first_loss"]
    assert loss["outcome"] == "verified"
    assert loss["observed"] == pytest.approx(loss["expected"], rel=1e-4)
    assert run.outcome("total_steps") == "verified"
