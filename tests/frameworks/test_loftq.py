"""LoftQ all at once runs the host out of memory (huggingface/peft#1708); staged it fits.

The real PEFT, at reduced width and depth: with 8 bits it compares every number of a weight with
all 256 levels in fp32, 0.5 GiB for one weight of 1024 x 512, and 9 GiB for the 3072 x 3072 of
the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from caps import peak_data_bytes, run_capped
from environments import environment
from jobs import _environ

SCRIPT = Path(__file__).parent / "standins" / "loftq_on_cpu.py"
ASSETS = Path(__file__).with_name("assets.py")
MIB = 1 << 20
LADDER = ("--ladder", "low_cpu_mem_usage,stage_loftq")
FLAGS = {
    "model_name_or_path": "model",
    "train_file": "data/train.json",
    "max_length": 64,
    "lora_r": 8,
    "init_lora_weights": "loftq",
    "loftq_bits": 8,
    "staged": False,
    "per_device_train_batch_size": 1,
    "max_steps": 2,
    "logging_steps": 1,
    "output_dir": "out",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}


def words(**changed: object) -> list[str]:
    return [word for k, v in (FLAGS | changed).items() for word in (f"--{k}", str(v))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loftq")
    python = environment("peft")
    shape = "--hidden 512 --layers 1 --vocabulary 1024 --samples 8 --words 40"
    argv = [python, ASSETS, "llama", place, *shape.split()]
    subprocess.run(argv, env=_environ(place, python), check=True, capture_output=True)
    return place


def test_at_once_it_runs_out_and_staged_it_trains(folder: Path) -> None:
    python = environment("peft")
    env = _environ(folder, python)
    staged = [str(python), str(SCRIPT), *words(staged=True, loftq_bits=4)]
    cap_bytes = peak_data_bytes(staged, cwd=folder, env=env) + 256 * MIB
    block = {"command": [str(python), str(SCRIPT)], "host_memory": f"{cap_bytes // MIB}MiB"}
    config = yaml.safe_dump({"oomguard": block, **FLAGS}, sort_keys=False)
    (folder / "train.yaml").write_text(config)
    done = subprocess.run(
        [sys.executable, "-m", "oomguard", "launch", "train.yaml", "--name", "run", *LADDER],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "oomguard-runs" / "run" / "fit-report.json").read_text())
    steps = [step["strategy"] for attempt in report["attempts"] for step in attempt["steps"]]
    assert steps == ["stage_loftq"]
    assert [attempt["verdict"]["kind"] for attempt in report["attempts"]] == ["host_oom", "ok"]
    final = yaml.safe_load((folder / "oomguard-runs" / "run" / "final" / "train.yaml").read_text())
    assert (final["staged"], final["loftq_bits"]) == (True, 4)
    by_hand = words(**{key: final[key] for key in FLAGS})
    again = run_capped(
        [str(python), str(SCRIPT), *by_hand], cwd=folder, env=env, cap_bytes=cap_bytes
    )
    assert again.returncode == 0, again.stdout
    assert (folder / "out" / "adapter_model.safetensors").exists()


def test_the_staged_adapter_is_the_best_answer_to_the_quantization_error(folder: Path) -> None:
    python = environment("peft")
    argv = [python, SCRIPT, "--residuals", "norms.json", *words(staged=True, loftq_bits=4)]
    subprocess.run(argv, cwd=folder, env=_environ(folder, python), check=True, capture_output=True)
    for norms in json.loads((folder / "norms.json").read_text()).values():
        assert norms["adapted"] == pytest.approx(norms["best"], rel=1e-3)
        assert norms["adapted"] < 0.99 * norms["alone"]
