"""Memory caps found by measuring: how much data memory a run takes, and a run under a limit.

What libraries and thread stacks take differs between machines, so a cap written down as a
number would fit one machine only.

    PYTHON caps.py COMMAND...     prints the peak in bytes
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# glibc then gives freed tensors back to the kernel at once, as a device would; without it the
# heap keeps them and the same run needs another cap each time.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "262144"}
#: A process is too young to hold much until it is looked for again.
_POLLS_OF_A_FAMILY = 16


def peak_data_bytes(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> int:
    """Run a command and give the largest `VmData` of any of its processes: what RLIMIT_DATA caps.

    The kernel keeps no high-water mark of it, so it is read every two milliseconds; a tensor
    large enough to matter takes longer than that to fill.

    Raises:
        RuntimeError: if the command failed, with the end of what it printed.
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
            # Walking all threads takes the job's own time on a small machine.
            family = family if poll % _POLLS_OF_A_FAMILY else _family(process.pid)
            peak_bytes = max(peak_bytes, *map(_data_bytes, family))
            time.sleep(0.002)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{argv} ended with {process.returncode}:\n{tail}")
    return peak_bytes


def run_capped(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], cap_bytes: int
) -> subprocess.CompletedProcess[str]:
    """Run a command by hand under RLIMIT_DATA; both output streams come back as `stdout`."""
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


def _family(pid: int) -> list[int]:
    """List a process and its descendants."""
    family = [pid]
    for parent in family:
        with contextlib.suppress(FileNotFoundError):  # it may end while it is looked at
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
    print(peak_data_bytes(sys.argv[1:], cwd=Path.cwd(), env=os.environ))
