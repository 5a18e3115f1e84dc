"""The quickstart as a newcomer runs it, in an environment that has what the recipe needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from assets import QUICKSTART
from environments import environment


def _layered(home: Path) -> Path:
    """Make an environment that sees the packages of the job, and oomguard with its own."""
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (job,) = environment("hf").parents[1].glob("lib/python*/site-packages")
    own = [path for path in sys.path if path.endswith(("site-packages", "src"))]
    (site / "layers.pth").write_text("\n".join([str(job), *own]) + "\n")
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Run a copy of the recipe, so that the checkout stays as it is."""
    root = tmp_path_factory.mktemp("quickstart")
    recipe = root / "recipes" / "quickstart"
    recipe.mkdir(parents=True)
    for file in QUICKSTART.glob("*.*"):
        (recipe / file.name).write_text(file.read_text())
    # What an earlier run has left is no obstacle.
    (root / "quickstart" / "output").mkdir(parents=True)
    (root / "quickstart" / "output" / "adapter_model.safetensors").write_text("old")
    done = subprocess.run(
        [_layered(root / "venv"), recipe / "run.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root, done


def _paths(quickstart, label):
    root, done = quickstart
    line = next(line for line in done.stderr.splitlines() if line.startswith(f"oomguard {label}"))
    return root, Path(line.split(label, 1)[1].strip())


def test_it_really_runs_out_at_16_and_8_and_is_trained_in_parts_of_4(quickstart):
    _, path = _paths(quickstart, "fit-report")
    report = json.loads(path.read_text())
    assert report["status"] == "fit"
    (attempt,) = report["attempts"]
    assert (attempt["plan"]["micro_batch"], report["final"]["micro_batch"]) == (16, 4)
    assert attempt["verdict"]["kind"] == "ok"
    assert attempt["verdict"]["requested_bytes"]
    assert attempt["optimizer_steps"] == 4
    (first,) = attempt["splits"]["at"]
    assert (first["step"], first["failed"], first["parts"], first["rows"]) == (1, 2, 4, 4)
    assert report["fidelity"] == "same_math"


def test_it_says_where_the_final_config_lies_and_what_is_changed_in_it(quickstart):
    _, final = _paths(quickstart, "final config  ")
    text = (QUICKSTART / "train.yaml").read_text()
    changed = [line for line in final.read_text().splitlines() if line not in text.splitlines()]
    assert changed == ["per_device_train_batch_size: 4", "gradient_accumulation_steps: 4"]


def test_it_tells_what_it_does_and_each_step_can_be_typed(quickstart):
    root, done = quickstart
    typed = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [name for line in typed for name in ("make_assets", "cap.py", "launch") if name in line]
    assert len(typed) == 3
    assert (root / "quickstart" / "output" / "adapter_model.safetensors").stat().st_size > 100


def _stable(line: str) -> str:
    """Replace what differs between runs and machines: sizes, seconds, the phase, the run folder."""
    line = re.sub(r"\d+(\.\d+)? ?[GM]iB", "SIZE", line)
    line = re.sub(r"\(\d+ s\)", "(N s)", line)
    line = re.sub(r"[\d.]+ s lost", "N s lost", line)
    line = re.sub(r" in (forward|backward) ", " in PHASE ", line)
    line = re.sub(r"\S*oomguard-runs/train-[\d-]+", "RUN", line)
    return re.sub(r"(--python )\S+", r"\1PYTHON", line)


def test_the_session_in_the_readme_is_what_is_printed(quickstart):
    _, done = quickstart
    readme = (QUICKSTART.parents[1] / "README.md").read_text()
    shown = readme.split("<!-- session:")[1].split("```console\n")[1].split("```")[0].splitlines()
    (typed,) = (line for line in done.stdout.splitlines() if " -m oomguard launch " in line)
    command = "$ oomguard " + typed.split(" -m oomguard ", 1)[1]
    said = [line for line in done.stderr.splitlines() if line.startswith("oomguard ")]
    assert [_stable(line) for line in shown] == [_stable(line) for line in [command, *said]]


def test_its_environment_traces_a_training_step(quickstart):
    root, _ = quickstart
    python = root / "venv" / "bin" / "python"
    words = ["plan", QUICKSTART / "train.yaml", "--gpu-memory", "24GiB", "--json"]
    done = subprocess.run(
        [python, "-m", "oomguard", *words], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["asked"]["estimate"]["method"].startswith("trace")
