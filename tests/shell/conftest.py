"""What tests of `oomguard plan` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from oomguard.cli.main import main
from shapes import LLAMA_YAML


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave it to arithmetic, on a machine without a GPU, whether this Python has torch or not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)
    monkeypatch.setattr("oomguard.cli.plan_command.gpus_here", tuple)


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Return a function that plans and returns the document."""

    def run(*words: object, code: int = 0) -> dict:
        assert main(["plan", *map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Return the config of a job."""
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA_YAML)
    return file
