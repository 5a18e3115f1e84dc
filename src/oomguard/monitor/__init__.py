"""The monitor, which runs in the job's own processes, and the environment that puts it there.

`path` uses the standard library and the job's torch only: it runs in the job's Python.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: First entry of the job's PYTHONPATH; Python finds our `sitecustomize` there.
PATH = Path(__file__).resolve().parent / "path"
#: What the monitor reads. A run started inside a job does not pass it on to its own job.
VARIABLES = (
    "OOMGUARD_SOCKET",
    "OOMGUARD_BUFFER",
    "OOMGUARD_GPU_MEMORY",
    "OOMGUARD_RESUME",
    "OOMGUARD_IN_PLACE",
    "OOMGUARD_TOKEN_BOUND",
    "OOMGUARD_PROBE_STEPS",
    "OOMGUARD_PROBE_LENGTH",
)


def add_monitor(
    env: Mapping[str, str], *, socket: Path, buffer: Path, gpu_memory_bytes: int | None = None
) -> dict[str, str]:
    """Return the environment of a job whose Python processes load the monitor.

    `socket` is a Unix socket (path of at most 107 bytes), `buffer` the folder for lines that cannot
    be sent, `gpu_memory_bytes` the cap of each process on each GPU. Our folder is on PYTHONPATH
    once, as its first entry; the other entries keep their order.
    """
    entries = env["PYTHONPATH"].split(os.pathsep) if env.get("PYTHONPATH") else []
    others = [entry for entry in entries if not entry or os.path.normpath(entry) != str(PATH)]
    added = {
        "PYTHONPATH": os.pathsep.join([str(PATH), *others]),
        "OOMGUARD_SOCKET": str(socket),
        "OOMGUARD_BUFFER": str(buffer),
    }
    if gpu_memory_bytes is not None:
        added["OOMGUARD_GPU_MEMORY"] = str(gpu_memory_bytes)
    return {**env, **added}


def in_place() -> dict[str, str]:
    """Return the variable that lets a step that runs out of memory run again in smaller parts."""
    return {"OOMGUARD_IN_PLACE": "1"}


def bounding(tokens: int) -> dict[str, str]:
    """Return the variable that divides each batch of more tokens before it runs."""
    return {"OOMGUARD_TOKEN_BOUND": str(tokens)}


def probing(*, steps: int, tokens: int | None) -> dict[str, str]:
    """Return the variables that end the job after `steps` optimizer steps.

    Its batches are lengthened to `tokens`, where that is given. Trackers that a script starts
    itself are disabled, if they follow the environment.
    """
    return {
        "OOMGUARD_PROBE_STEPS": str(steps),
        **({"OOMGUARD_PROBE_LENGTH": str(tokens)} if tokens else {}),
        "WANDB_MODE": "disabled",
        "COMET_MODE": "disabled",
    }
