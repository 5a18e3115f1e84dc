"""Collects what a run is made of, before its first attempt: environment and data."""

from __future__ import annotations

import platform
from pathlib import Path

from oomguard.adapters.contract import Adapter
from oomguard.adapters.registry import ADAPTERS
from oomguard.dataset.fingerprint import fingerprint
from oomguard.job.provenance import DataFingerprint, Environment, GpuModel
from oomguard.job.training_job import Job
from oomguard.machine.git_state import git_state
from oomguard.machine.gpus import driver_version, gpus, host_memory
from oomguard.machine.interpreter import facts_of

#: Packages whose versions decide how much memory a job takes, by the name that pip installs.
PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "trl", "deepspeed", "bitsandbytes"),
    *("liger-kernel", "flash-attn", "xformers", "torchao", "triton", "vllm", "sglang", "unsloth"),
    *("datasets", "tokenizers", "ms-swift"),
)


def environment_of(job: Job) -> Environment:
    """Return the machine and the software that a fit depends on."""
    frameworks = (name for one in ADAPTERS for name in one.python_packages)
    python = facts_of(job.python, dict.fromkeys([*PACKAGES, *frameworks]))
    return Environment(
        system=platform.platform(),
        host_memory_bytes=host_memory().total_bytes,
        gpus=tuple(GpuModel(name=one.name, total_bytes=one.total_bytes) for one in gpus()),
        driver=driver_version(),
        cuda=python.cuda,
        python=python.version,
        executable=job.python,
        packages=python.packages,
        git=git_state(Path(job.cwd)),
    )


def data_of(job: Job, adapter: Adapter) -> DataFingerprint | None:
    """Return what identifies the job's data; None where the job does not say what it reads."""
    data, seed = adapter.data(job), adapter.seed(job)
    if not data and seed is None:
        return None
    return fingerprint(data, Path(job.cwd), lengths=job.lengths, seed=seed)
