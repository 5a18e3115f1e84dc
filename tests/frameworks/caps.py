"""A run under a memory limit, and the peak that the limit is chosen by."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

from peak_memory import RETURN_FREED, peak_data_bytes

__all__ = ["peak_data_bytes", "run_capped"]


def run_capped(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], cap_bytes: int
) -> subprocess.CompletedProcess[str]:
    """Run a command without oomguard under RLIMIT_DATA; `stdout` holds both output streams."""
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env={**env, **RETURN_FREED},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (cap_bytes, cap_bytes))
        output, _ = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, output)
