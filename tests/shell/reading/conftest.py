"""A plan and a refusal as a user gets them, by arithmetic alone."""

from __future__ import annotations

import json

import pytest

from oomguard.cli.main import main


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)


@pytest.fixture
def plan(capsys, tmp_path):
    def run(job: str, *options: str) -> dict:
        words = ["--", *job.split()]
        if "\n" in job:
            (tmp_path / "train.yaml").write_text(job)
            words = ["train.yaml"]
        card = () if "--gpu-memory" in options else ("--gpu", "a100-80")
        assert main(["plan", *card, "--json", *options, *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys, tmp_path):
    def run(text: str, command: str = "plan") -> str:
        (tmp_path / "train.yaml").write_text(text)
        options = ["--gpu", "a100-80"] if command == "plan" else []
        assert main([command, *options, "train.yaml"]) != 0
        return capsys.readouterr().err

    return run
