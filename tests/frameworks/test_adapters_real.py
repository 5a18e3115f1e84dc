"""A rung that needs a real package: DeepSpeed's ZeRO-3 on two processes.

On the CPU, under a cap measured on the way that must fit.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pytest
import yaml
from caps import peak_data_bytes, run_capped
from environments import environment
from jobs import _environ

from oomguard.adapters.deepspeed import zero_config
from oomguard.plan import Sharding

ASSETS = Path(__file__).with_name("assets.py")
MIB = 1 << 20
LAUNCH = (sys.executable, "-m", "oomguard", "launch", "train.yaml", "--name", "run")
CONFIG = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "dataset": "tiny",
    "dataset_dir": "data",
    "template": "default",
    "cutoff_len": 32,
    "preprocessing_num_workers": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1.0e-4,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "output_dir": "out",
    "overwrite_output_dir": True,
    "plot_loss": False,
    "report_to": "none",
}


@dataclass(frozen=True)
class Prepared:
    """A LLaMA-Factory job in a folder of its own."""

    folder: Path
    python: Path
    env: Mapping[str, str]

    @property
    def cli(self) -> str:
        return str(self.python.with_name("llamafactory-cli"))

    def peak_bytes(self, **changed: object) -> int:
        self.write("fits.yaml", changed)
        return peak_data_bytes([self.cli, "train", "fits.yaml"], cwd=self.folder, env=self.env)

    def write(self, name: str, changed: Mapping[str, object]) -> None:
        (self.folder / name).write_text(yaml.safe_dump(CONFIG | dict(changed), sort_keys=False))

    def launch(self, ladder: str, cap_bytes: int) -> dict[str, object]:
        done = subprocess.run(
            [*LAUNCH, "--ladder", ladder, "--host-memory", f"{cap_bytes // MIB}MiB"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        report: dict[str, object] = json.loads((self.run / "fit-report.json").read_text())
        return report

    @property
    def run(self) -> Path:
        return self.folder / "oomguard-runs" / "run"

    def by_hand(self, cap_bytes: int) -> str:
        """Type what `final/command.txt` says, under the same cap; give what it printed."""
        line = next(
            line
            for line in (self.run / "final" / "command.txt").read_text().splitlines()
            if "llamafactory-cli" in line
        )
        words = shlex.split(line.split("&&", 1)[-1])
        named = dict(word.split("=", 1) for word in words if "=" in word.split("/")[0])
        argv = [word for word in words if "=" not in word.split("/")[0]]
        done = run_capped(argv, cwd=self.folder, env={**self.env, **named}, cap_bytes=cap_bytes)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def losses(self) -> list[float]:
        rows = (self.folder / "out" / "trainer_log.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, rows) if "loss" in row]


def prepared(folder: Path, shape: str, *, words: int = 20, **env: str) -> Prepared:
    python = environment("llamafactory")
    base = {**_environ(folder, python), "CUDA_VISIBLE_DEVICES": "", **env}
    asked = [*shape.split(), "--samples", "16", "--words", str(words)]
    subprocess.run([python, ASSETS, "llama", folder, *asked], env=base, check=True)
    (folder / "data" / "dataset_info.json").write_text('{"tiny": {"file_name": "train.json"}}')
    return Prepared(folder=folder, python=python, env=base)


@pytest.mark.timeout(1200)
def test_zero3_brings_a_job_of_two_processes_to_its_end(tmp_path: Path) -> None:
    compiled = platformdirs.user_cache_path("oomguard") / "torch_extensions"
    job = prepared(
        tmp_path,
        "--hidden 1024 --layers 2",
        FORCE_TORCHRUN="1",
        NPROC_PER_NODE="2",
        OMP_NUM_THREADS="1",
        TORCH_EXTENSIONS_DIR=os.environ.get("TORCH_EXTENSIONS_DIR", str(compiled)),
    )
    (tmp_path / "zero3.json").write_text(zero_config(Sharding.ZERO3, frozenset()))
    full = {"finetuning_type": "full"}
    job.peak_bytes(**full, deepspeed="zero3.json", max_steps=1)  # compiles what it needs
    cap_bytes = job.peak_bytes(**full, deepspeed="zero3.json") + 128 * MIB
    job.write("train.yaml", full)
    report = job.launch("switch_to_zero3", cap_bytes)
    attempts = report["attempts"]
    assert [attempt["verdict"]["kind"] for attempt in attempts] == ["host_oom", "ok"]
    assert [step["strategy"] for step in attempts[1]["steps"]] == ["switch_to_zero3"]
    final = yaml.safe_load((job.run / "final" / "train.yaml").read_text())
    assert final["deepspeed"].endswith("deepspeed_zero3.json")
    output = job.by_hand(cap_bytes)
    assert "world size: 2" in output
    assert job.losses()
    assert all(math.isfinite(loss) for loss in job.losses())
