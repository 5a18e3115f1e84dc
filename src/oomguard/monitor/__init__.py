"""What runs inside the processes of the job. Standard library and the torch of the job only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: The folder that goes first on the job's PYTHONPATH.
PATH = Path(__file__).resolve().parent / "path"


def environment(
    base: Mapping[str, str],
    *,
    socket: str,
    buffer: str,
    mark: str,
    gpu_memory_bytes: int | None = None,
) -> dict[str, str]:
    """Return what has to be set, on top of `base`, for the reporter to work in the job.

    `socket` is the path of the Unix socket (at most 107 bytes), `buffer` the folder for lines that
    cannot be sent, `mark` the token of the attempt, `gpu_memory_bytes` the cap of each process on
    each GPU.
    """
    others = [
        entry
        for entry in base.get("PYTHONPATH", "").split(os.pathsep)
        if entry and entry != str(PATH)
    ]
    added = {
        "PYTHONPATH": os.pathsep.join([str(PATH), *others]),
        "OOMGUARD_SOCKET": socket,
        "OOMGUARD_BUFFER": buffer,
        "OOMGUARD_MARK": mark,
    }
    if gpu_memory_bytes is not None:
        added["OOMGUARD_GPU_MEMORY"] = str(gpu_memory_bytes)
    return added


def probing(*, steps: int, tokens: int | None) -> dict[str, str]:
    """Return what has to be set for the job to end by itself after `steps` optimizer steps.

    Its batches are lengthened to `tokens`, where that is given. Trackers that a script starts
    by itself stay silent, as far as they listen to the environment.
    """
    return {
        "OOMGUARD_PROBE_STEPS": str(steps),
        **({"OOMGUARD_PROBE_LENGTH": str(tokens)} if tokens else {}),
        "WANDB_MODE": "disabled",
        "COMET_MODE": "disabled",
    }
