"""Two ranks over gloo, one of which runs out of memory before the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TORCHRUN = ("torchrun", "--nproc-per-node", "2")
JOB = Path(__file__).parent / "standins" / "two_ranks.py"
SAMPLE_MIB = 64


def launch(
    folder: Path,
    python: Path,
    *options: str,
    job: tuple[str, ...] = (),
    ranks: tuple[str, ...] = TORCHRUN,
):
    started = [str(python.with_name(ranks[0])), *ranks[1:], str(JOB)]
    flags = ["--per_device_train_batch_size", "8", "--sample_mib", str(SAMPLE_MIB), *job]
    oomguard = [sys.executable, "-m", "oomguard", "launch", *options, "--name", "run"]
    return subprocess.run(
        [*oomguard, "--", *started, *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def events(folder: Path, name: str) -> list[dict[str, object]]:
    lines = (folder / "oomguard-runs" / "run" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def cap_bytes(python: Path) -> int:
    """Return what a rank that has imported torch may have, and six samples more."""
    code = (
        "import torch, torch.distributed as d, os\n"
        "os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0')\n"
        "torch.nn.Linear(8, 8)(torch.ones(2, 8)).sum().backward()\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmData')][0])"
    )
    baseline = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return int(baseline) * 1024 + 6 * SAMPLE_MIB * 2**20
