"""The adapter in docs/adding-a-framework.md plans a job, and runs a real one to completion."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from adapters.toytrain import PAGE, shown, toytrain
from oomguard.adapters import registry
from oomguard.cli.main import main

SAMPLE_BYTES = 32 << 20
#: 16 and 8 samples are too many, 4 fit.
CAP_BYTES = 6 * SAMPLE_BYTES
#: A trainer that nothing in oomguard names: it takes real memory for each sample of a batch.
TRAINER = f"""
import sys, yaml
settings = yaml.safe_load(open(sys.argv[1]))
batch = [bytearray({SAMPLE_BYTES}) for _ in range(settings["batch"])]
print("trained", settings["batch"], "x", settings["accumulate"])
"""
CONFIG = "toytrain: 1  # the version\nmodel: meta-llama/Llama-3.1-8B\nbatch: 16\naccumulate: 1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "ADAPTERS", (*registry.ADAPTERS, toytrain()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    (tmp_path / "toytrain.py").write_text(TRAINER)
    (tmp_path / "x.yaml").write_text(CONFIG)
    return tmp_path


def test_it_is_as_small_as_it_can_be() -> None:
    assert len(shown().splitlines()) < 80


def test_the_methods_with_defaults_are_methods() -> None:
    table = PAGE.split("| method | default |")[1].split("\n\n")[0]
    names = [name for row in table.splitlines() for name in row.split("|")[1:2]]
    methods = [one.strip(" `-") for cell in names for one in cell.split(",") if "`" in one]
    assert len(methods) > 10
    assert [name for name in methods if not callable(getattr(toytrain(), name, None))] == []


def test_its_adapter_plans(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "x.yaml", "--gpu-memory", "24GiB", "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert planned["framework"] == "toytrain"
    assert planned["asked"]["plan"]["micro_batch"] == 16
    assert planned["asked"]["estimate"]["high_bytes"] > 8 << 30


def test_its_adapter_brings_a_job_to_completion(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cap = ["--host-memory", str(CAP_BYTES), "--no-predict"]
    assert main(["launch", "x.yaml", "--ladder", "halve_micro_batch", *cap]) == 0
    assert "trained 4 x 4" in capfd.readouterr().out
    (run,) = (folder / "oomguard-runs").iterdir()
    report = json.loads((run / "fit-report.json").read_text())
    kinds = [attempt["verdict"]["kind"] for attempt in report["attempts"]]
    assert kinds == ["host_oom", "host_oom", "ok"]
    final = (run / "final" / "x.yaml").read_text()
    wanted = CONFIG.replace("batch: 16", "batch: 4").replace("accumulate: 1", "accumulate: 4")
    assert final == wanted


def test_its_commands_and_configs_are_recognized(folder: Path) -> None:
    argv = ("torchrun", "--nproc_per_node", "2", "toytrain.py", "x.yaml")
    assert registry.detect_command(argv).name == "toytrain"
    assert registry.detect({"toytrain": 1, "output_dir": "o"}).name == "toytrain"
    assert registry.detect_command(("python", "train.py", "--x", "1")).name == "hf_trainer"
