"""oomguard from Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import oomguard
from oomguard.errors import ConfigError, LogError, UsageError
from oomguard.estimate.memory import Fits
from oomguard.evidence.verdict import Kind
from oomguard.run.events import Status
from oomguard.strategy import Fidelity
from shell.launches import SETUP
from shell.reading_jobs import LF

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)


def test_a_config_is_planned(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(LF.replace("0.5B", "7B").replace("512", "8192"))
    planned = oomguard.plan("train.yaml", gpu="RTX 3090")
    assert planned.fits is not Fits.YES
    assert planned.first_fit is not None
    assert planned.estimate.expected_bytes > 20 << 30
    assert planned.document["framework"] == "llamafactory"
    shown = planned._repr_markdown_()
    assert "| trained | LoRA r=8 on all linear layers |" in shown
    assert "| changes until it fits |" in shown


def test_the_example_of_the_docs_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "python.md"
    code = page.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "train.yaml").write_text(LF)
    exec(compile(code, page.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("yes ")
    assert lines[-1] == "device_oom"


def test_a_command_is_planned_for_a_size() -> None:
    words = "trl sft --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name d --output_dir o"
    planned = oomguard.plan(words.split(), gpu_memory_bytes=80 << 30, allow=Fidelity.SAME_MATH)
    assert planned.fits is Fits.YES
    assert planned.job.capacity.device_bytes == 80 << 30


def test_what_cannot_be_planned_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oomguard.cli.plan_command.gpus_here", tuple)
    words = ["trl", "sft", "--model_name_or_path", "Qwen/Qwen2.5-0.5B", "--dataset_name", "d"]
    with pytest.raises(UsageError, match="no GPU here") as caught:
        oomguard.plan(words)
    assert "gpu='RTX 3090'" in caught.value.next_step
    with pytest.raises(UsageError, match="no option 'ladders'") as caught:
        oomguard.plan(words, gpu="a100-80", ladders="classic")
    assert "'ladder'" in caught.value.next_step
    with pytest.raises(UsageError, match="wrong option"):
        oomguard.plan(words, gpu="a100-80", max_attempts="many")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        oomguard.plan("none.yaml", gpu="a100-80")


def test_a_log_is_explained(tmp_path: Path) -> None:
    assert oomguard.explain(OOM).kind is Kind.DEVICE_OOM
    (tmp_path / "job.log").write_text("step 1\n" + OOM)
    assert oomguard.explain(tmp_path / "job.log", exit_code=1).kind is Kind.DEVICE_OOM
    with pytest.raises(LogError):
        oomguard.explain(tmp_path / "none.log")


def test_a_job_is_launched(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"if micro > 4:\n    sys.exit({OOM!r})\nsay('trained with', micro)\n"
    (tmp_path / "job.py").write_text(SETUP + code)
    words = [sys.executable, "job.py", "--per_device_train_batch_size", "16"]
    report = oomguard.launch(words, ladder="halve_micro_batch", predict=False, name="run")
    assert (report.status, report.fidelity) == (Status.FIT, Fidelity.SAME_MATH)
    assert [one.spec.plan.micro_batch for one in report.attempts] == [16, 8, 4]
    assert "trained with 4" in capfd.readouterr().out
    assert (tmp_path / "oomguard-runs" / "run" / "fit-report.json").exists()


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = oomguard.train
