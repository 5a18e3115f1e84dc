"""The recipes of TRL and of QwenLM/Qwen's finetune.py: out of memory, then trained.

Qwen's own script cannot be shipped; `recipes/qwen/finetune.py` has its flags. The original runs
from a checkout that OOMGUARD_QWEN_REPO names, if its imports are installed.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jobs import cap_bytes
from launched import Launched, launch
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


def test_qwens_flags_are_brought_to_their_end(tmp_path: Path) -> None:
    job = recipe_job("qwen/tiny.yaml", "qwen", "hf", tmp_path)
    cap = subprocess.run(
        [job.python, "recipes/find_cap.py", path_of(job)],
        cwd=tmp_path,
        env=dict(job.env),
        check=True,
        capture_output=True,
        text=True,
    )
    found = launched(job, path_of(job), cap=cap.stdout.strip())
    assert found.report["framework"] == "qwen"
    assert (tmp_path / "out" / "qwen" / "adapter_model.safetensors").exists()


@pytest.mark.skipif("OOMGUARD_QWEN_REPO" not in os.environ, reason="no checkout of QwenLM/Qwen")
def test_qwens_own_script_is_brought_to_its_end(tmp_path: Path) -> None:
    job = recipe_job("qwen/tiny.yaml", "qwen", "hf", tmp_path)
    script = str(Path(os.environ["OOMGUARD_QWEN_REPO"]) / "finetune.py")
    job = replace(job, argv=(job.argv[0], script, *job.argv[2:]))
    assert launched(job, "--", *job.argv).report["framework"] == "qwen"
