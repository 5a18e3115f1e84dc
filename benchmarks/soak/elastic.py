"""Starts the rank that trains, and again from its newest whole checkpoint when it is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

JOB = Path(__file__).parents[2] / "tests" / "faults" / "training_job.py"
OUT = Path(sys.argv[sys.argv.index("--output_dir") + 1])


def newest() -> list[str]:
    """Return the flag that resumes from the latest complete checkpoint."""
    found = sorted(OUT.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for folder in found:
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return ["--resume_from_checkpoint", str(folder)]
    return []


given = sys.argv[1:]
while True:
    rank = subprocess.Popen(
        [sys.executable, str(JOB), *given],
        env={**os.environ, "RANK": "0"},
        start_new_session=True,
    )
    code = rank.wait()
    if code != -9:
        sys.exit(code)
    given = [*sys.argv[1:], *newest()]
