"""The recipes of TRL and of QwenLM/Qwen's finetune.py: out of memory, then trained.

Qwen's own script cannot be shipped; `recipes/qwen/finetune.py` has its flags. The original runs
from a checkout that OOMGUARD_QWEN_REPO names, if its imports are installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jobs import TinyJob, cap_bytes
from launched import Launched, again, launch
from recipes import path_of, recipe_job


def launched(job, *words: str, cap: str = "") -> Launched:
    ladder = ("--ladder", "halve_micro_batch")
    found = launch(job, cap or f"--host-memory={cap_bytes(job)}", *ladder, *words)
    assert found.code == 0, found.err[-3000:]
    assert (found.micro_batches, found.kinds) == ([16, 8, 4], ["host_oom", "host_oom", "ok"])
    return found


def test_trl_is_brought_to_its_end(tmp_path: Path) -> None:
    job = recipe_job("hf_trainer/trl_tiny.yaml", "trl", "trl", tmp_path)
    found = launched(job, path_of(job))
    assert found.report["framework"] == "trl"
    text = found.final.read_text()
    assert "per_device_train_batch_size: 4  # all at once\n" in text
    assert yaml.safe_load(text)["gradient_accumulation_steps"] == 4


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyJob, str]:
    """Return the job of the script that stands in for Qwen's, and the cap that its users find."""
    job = recipe_job("qwen/tiny.yaml", "qwen", "hf", tmp_path_factory.mktemp("qwen"))
    cap = subprocess.run(
        [job.python, "recipes/find_cap.py", path_of(job)],
        cwd=job.folder,
        env=dict(job.env),
        check=True,
        capture_output=True,
        text=True,
    )
    return job, cap.stdout.strip()


def test_qwens_flags_are_brought_to_their_end(qwen: tuple[TinyJob, str]) -> None:
    job, cap = qwen
    found = launched(job, path_of(job), cap=cap)
    assert found.report["framework"] == "qwen"
    assert (job.folder / "out" / "qwen" / "adapter_model.safetensors").exists()


def test_qwens_flags_are_trained_in_one_attempt_where_steps_are_divided(
    qwen: tuple[TinyJob, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    job, cap = qwen
    seen = []
    # Without an adapter, which the script makes before it sets a seed.
    own_words = ("--use_lora", "False", "--save_strategy", "steps", "--save_steps", "2")
    for limit in (cap, ""):
        own = again(job, tmp_path_factory.mktemp("run"))
        found = launch(own, "--in-place", *limit.split(), "--", *own.argv, *own_words)
        assert found.code == 0, found.err[-3000:]
        assert (found.kinds, found.micro_batches) == (["ok"], [16])
        assert (found.attempts[0]["splits"] is not None) == bool(limit)
        state = own.folder / "out" / "qwen" / "checkpoint-2" / "trainer_state.json"
        steps = json.loads(state.read_text())["log_history"][:2]
        seen.append([number for row in steps for number in (row["loss"], row["grad_norm"])])
        if limit:
            final = found.report["final"]
            assert final["micro_batch"] * final["accumulation"] == 16
            assert final["micro_batch"] < 16
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


@pytest.mark.skipif("OOMGUARD_QWEN_REPO" not in os.environ, reason="no checkout of QwenLM/Qwen")
def test_qwens_own_script_is_brought_to_its_end(tmp_path: Path) -> None:
    job = recipe_job("qwen/tiny.yaml", "qwen", "hf", tmp_path)
    script = str(Path(os.environ["OOMGUARD_QWEN_REPO"]) / "finetune.py")
    job = replace(job, argv=(job.argv[0], script, *job.argv[2:]))
    assert launched(job, "--", *job.argv).report["framework"] == "qwen"
