"""Measure the data memory of a command: the peak that `--host-memory` limits.

    python recipes/peak_memory.py COMMAND...     prints the peak in bytes

Libraries and thread stacks take different amounts on different machines, so a limit that suits one
machine does not suit another: it is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: glibc then returns freed tensors to the kernel at once, as a GPU allocator would. Without it the
#: heap keeps them, and the same run has a different peak each time.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "262144"}
#: Polls between two walks of the process tree: a new process holds little memory yet.
_POLLS_PER_WALK = 16


def peak_data_bytes(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> int:
    """Run a command and return the largest `VmData` of any of its processes: what RLIMIT_DATA caps.

    The kernel keeps no high-water mark of it, so it is read every two milliseconds; filling a
    tensor large enough to matter takes longer than that.

    Raises:
        RuntimeError: if the command failed, with the end of its output.
    """
    log = cwd / "peak.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, cwd=cwd, env={**env, **RETURN_FREED}, stdout=out, stderr=subprocess.STDOUT
        )
        peak_bytes, family = 0, [process.pid]
        for poll in itertools.count():
            if process.poll() is not None:
                break
            # Walking all threads slows the job down on a small machine.
            family = family if poll % _POLLS_PER_WALK else _family(process.pid)
            peak_bytes = max(peak_bytes, *map(_data_bytes, family))
            time.sleep(0.002)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{argv} failed with exit code {process.returncode}:\n{tail}")
    return peak_bytes


def _family(pid: int) -> list[int]:
    """List a process and its descendants."""
    family = [pid]
    for parent in family:
        with contextlib.suppress(FileNotFoundError):  # it may exit meanwhile
            for task in os.scandir(f"/proc/{parent}/task"):
                family += map(int, _text(Path(task.path, "children")).split())
    return family


def _data_bytes(pid: int) -> int:
    status = _text(Path(f"/proc/{pid}/status")).splitlines()
    sizes = [line.split()[1] for line in status if line.startswith("VmData:")]
    return int(sizes[0]) * 1024 if sizes else 0


def _text(path: Path) -> str:
    """Read a file of /proc; empty once its process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    print(peak_data_bytes(sys.argv[1:], cwd=Path.cwd(), env=os.environ))  # noqa: T201
