"""Rungs that need a real package, reached by the ladder: DeepSpeed's ZeRO, bitsandbytes' 4 bits.

On the CPU, under a cap between measured peaks; ZeRO on two processes that talk over gloo.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
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

from oomguard.adapters.hf.deepspeed import zero_config
from oomguard.job.plan import Sharding

ASSETS = Path(__file__).with_name("assets.py")
WIDE = Path(__file__).with_name("wide_llama.py")
MIB = 1 << 20
LAUNCH = (
    *(sys.executable, "-m", "oomguard", "launch", "train.yaml", "--name", "run"),
    "--no-in-place",
)
#: A base in 8 bits takes some 40 MiB more than one in 4 bits, bf16 and fp32 more than 80.
QLORA_ROOM_BYTES = 20 * MIB
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

    def launch(self, cap_bytes: int, *words: str) -> dict[str, object]:
        shutil.rmtree(self.run, ignore_errors=True)
        done = subprocess.run(
            [*LAUNCH, "--host-memory", str(cap_bytes), "--no-predict", *words],
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

    @property
    def final(self) -> dict[str, object]:
        config: dict[str, object] = yaml.safe_load((self.run / "final" / "train.yaml").read_text())
        return config

    def by_hand(self, cap_bytes: int) -> str:
        """Type what `final/command.txt` says, under the same cap; give what it printed."""
        (self.folder / "out" / "trainer_log.jsonl").unlink()
        line = (self.run / "final" / "command.txt").read_text().splitlines()[-1]
        words = shlex.split(line.split("&&", 1)[-1])
        named = dict(word.split("=", 1) for word in words if "=" in word.split("/")[0])
        argv = [word for word in words if "=" not in word.split("/")[0]]
        done = run_capped(argv, cwd=self.folder, env={**self.env, **named}, cap_bytes=cap_bytes)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    @property
    def losses(self) -> list[float]:
        """The losses of the run that came last."""
        rows = (self.folder / "out" / "trainer_log.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, rows) if "loss" in row]


def steps_and_kinds(report):
    """Return what each attempt was changed by, and how it ended."""
    attempts = report["attempts"]
    return [
        ([step["strategy"] for step in one["steps"]], one["verdict"]["kind"]) for one in attempts
    ]


def check_trained(losses: list[float]) -> None:
    assert len(losses) == CONFIG["max_steps"]
    assert all(math.isfinite(loss) for loss in losses)


def prepared(folder: Path, assets: Path, *words: str, **env: str) -> Prepared:
    python = environment("llamafactory")
    base = {**_environ(folder, python), "CUDA_VISIBLE_DEVICES": "", **env}
    subprocess.run([python, assets, *words], env=base, check=True, capture_output=True)
    (folder / "data" / "dataset_info.json").write_text('{"tiny": {"file_name": "train.json"}}')
    return Prepared(folder=folder, python=python, env=base)


FULL = {"finetuning_type": "full"}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, int]:
    """Return a job that trains all weights of a small model, and a cap under which ZeRO fits.

    Both stages share out the optimizer's state and the gradients, which outweigh the rest.
    """
    folder = tmp_path_factory.mktemp("zero")
    shape = "--hidden 768 --layers 2 --samples 16 --words 20"
    compiled = platformdirs.user_cache_path("oomguard") / "torch_extensions"
    job = prepared(
        folder,
        ASSETS,
        *("llama", str(folder), *shape.split()),
        FORCE_TORCHRUN="1",
        NPROC_PER_NODE="2",
        OMP_NUM_THREADS="1",
        TORCH_EXTENSIONS_DIR=os.environ.get("TORCH_EXTENSIONS_DIR", str(compiled)),
    )
    (folder / "zero.json").write_text(zero_config(Sharding.ZERO3, frozenset()))
    return job, job.peak_bytes(**FULL, deepspeed="zero.json") + 64 * MIB


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("stage", "ladder"),
    [("zero2", ()), ("zero3", ("--ladder", "switch_to_zero3"))],
    ids=["zero2-by-the-whole-ladder", "zero3"],
)
def test_zero_brings_a_job_of_two_processes_to_its_end(
    two_processes: tuple[Prepared, int], stage: str, ladder: tuple[str, ...]
) -> None:
    job, cap_bytes = two_processes
    job.write("train.yaml", FULL)
    report = job.launch(cap_bytes, *ladder)
    assert steps_and_kinds(report) == [([], "host_oom"), ([f"switch_to_{stage}"], "ok")]
    assert str(job.final["deepspeed"]).endswith(f"deepspeed_{stage}.json")
    output = job.by_hand(cap_bytes)
    assert "world size: 2" in output
    check_trained(job.losses)


@pytest.mark.timeout(1200)
def test_a_base_in_4_bits_is_what_makes_a_lora_job_fit(tmp_path: Path) -> None:
    """The whole ladder: nothing is left to give but the base, and 8 bits are too many."""
    lora = {
        "finetuning_type": "lora",
        "lora_target": "q_proj,v_proj",
        "cutoff_len": 64,
        "bf16": True,
        "use_cpu": True,
    }
    job = prepared(tmp_path, WIDE, str(tmp_path))
    four_bits = {"quantization_bit": 4, "double_quantization": True}
    cap_bytes = job.peak_bytes(**lora, **four_bits, max_steps=1) + QLORA_ROOM_BYTES
    job.write("train.yaml", lora)
    report = job.launch(cap_bytes)
    assert steps_and_kinds(report) == [
        ([], "host_oom"),
        (["eight_bit_base"], "host_oom"),
        (["enable_qlora"], "ok"),
    ]
    phases = [attempt["verdict"]["phase"] for attempt in report["attempts"]]
    assert phases[1] == "load", "in 8 bits it does not even get to its first batch"
    assert [change["field"] for change in report["changes"]] == ["quantization"]
    assert job.final["quantization_bit"] == 4
    job.by_hand(cap_bytes)
    check_trained(job.losses)
