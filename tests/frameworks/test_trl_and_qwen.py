"""TRL, and QwenLM/Qwen's finetune.py, out of memory and brought to their end.

Qwen's own script cannot be shipped. `standins/qwen/finetune.py` has its flags and stands in for
it; the original runs from a checkout that OOMGUARD_QWEN_REPO names, where its imports are met.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from environments import environment
from jobs import GLOBAL_BATCH, TinyJob, _environ, cap_bytes

ASSETS = Path(__file__).with_name("assets.py")
STANDIN = Path(__file__).parent / "standins" / "qwen" / "finetune.py"
MIB = 1 << 20
TRL = """\
# the user's own words
model_name_or_path: model
dataset_name: texts  # a folder of jsonl
max_length: 256
gradient_checkpointing: false
bf16: false
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
max_steps: 2
logging_steps: 1
output_dir: out
save_strategy: "no"
report_to: none
use_cpu: true
"""
QWEN = (
    "--model_name_or_path model --data_path talks.json --lazy_preprocess True --use_lora"
    " --lora_r 8 --model_max_length 256 --per_device_train_batch_size 16"
    " --gradient_accumulation_steps 1 --max_steps 2 --logging_steps 1 --output_dir out"
    " --save_strategy no --report_to none --use_cpu True"
)


def assets(folder: Path, python: Path, shape: str) -> list[dict[str, str]]:
    argv = [python, ASSETS, "llama", folder, *shape.split(), "--samples", "32"]
    subprocess.run(argv, env=_environ(folder, python), check=True, capture_output=True)
    rows: list[dict[str, str]] = json.loads((folder / "data" / "train.json").read_text())
    return rows


def flags(micro: int) -> tuple[str, ...]:
    steps = GLOBAL_BATCH // micro
    return (
        *("--per_device_train_batch_size", str(micro)),
        *("--gradient_accumulation_steps", str(steps)),
    )


def trl_job(folder: Path) -> TinyJob:
    python = environment("trl")
    rows = assets(folder, python, "--hidden 256 --layers 4 --vocabulary 1024")
    (folder / "texts").mkdir()
    lines = [json.dumps({"text": f"{row['instruction']} {row['output']}"}) for row in rows]
    (folder / "texts" / "train.jsonl").write_text("\n".join(lines))
    (folder / "train.yaml").write_text(TRL)
    return TinyJob(
        name="trl",
        folder=folder,
        python=python,
        config=folder / "train.yaml",
        argv=(str(python.with_name("trl")), "sft", "--config", "train.yaml"),
        env=_environ(folder, python),
        smaller=flags,
    )


def qwen_job(folder: Path, script: Path) -> TinyJob:
    python = environment("hf")
    rows = assets(folder, python, "--hidden 64 --layers 2")
    talks = [
        {
            "id": str(number),
            "conversations": [
                {"from": "user", "value": row["instruction"]},
                {"from": "assistant", "value": row["output"]},
            ],
        }
        for number, row in enumerate(rows)
    ]
    (folder / "talks.json").write_text(json.dumps(talks))
    return TinyJob(
        name="qwen",
        folder=folder,
        python=python,
        config=folder / "talks.json",
        argv=(str(python), str(script), *QWEN.split()),
        env=_environ(folder, python),
        smaller=flags,
    )


def launched(job: TinyJob, *words: str) -> dict[str, object]:
    cap = f"{cap_bytes(job) // MIB}MiB"
    base = [sys.executable, "-m", "oomguard", "launch", "--name", "run", "--host-memory", cap]
    done = subprocess.run(
        [*base, "--ladder", "halve_micro_batch", *words],
        cwd=job.folder,
        env=dict(job.env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = job.folder / "oomguard-runs" / "run"
    report: dict[str, object] = json.loads((run / "fit-report.json").read_text())
    return report


def test_trl_is_brought_to_its_end(tmp_path: Path) -> None:
    job = trl_job(tmp_path)
    report = launched(job, "train.yaml")
    assert report["framework"] == "trl"
    final = tmp_path / "oomguard-runs" / "run" / "final" / "train.yaml"
    text = final.read_text()
    assert "per_device_train_batch_size: 4  # all at once\n" in text
    assert yaml.safe_load(text)["gradient_accumulation_steps"] == 4


def test_qwens_flags_are_brought_to_their_end(tmp_path: Path) -> None:
    job = qwen_job(tmp_path, STANDIN)
    report = launched(job, "--", *job.argv)
    assert report["framework"] == "qwen"
    assert report["attempts"][-1]["plan"]["micro_batch"] == 4
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.skipif("OOMGUARD_QWEN_REPO" not in os.environ, reason="no checkout of QwenLM/Qwen")
def test_qwens_own_script_is_brought_to_its_end(tmp_path: Path) -> None:
    job = qwen_job(tmp_path, Path(os.environ["OOMGUARD_QWEN_REPO"]) / "finetune.py")
    report = launched(job, "--", *job.argv)
    assert report["framework"] == "qwen"
