"""What `oomguard doctor` looks at: the job's Python, GPUs, host memory, cgroups, the monitor."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from oomguard.adapters.registry import ADAPTERS
from oomguard.errors import OomguardError
from oomguard.job.memory_settings import Family
from oomguard.ladder.load import load_strategies
from oomguard.machine.cgroups import name_for, own_cgroup
from oomguard.machine.gpus import gpus, host_memory
from oomguard.machine.interpreter import Interpreter, versions_of
from oomguard.predict.trace_client import tracer_of
from oomguard.process.reach import monitor_reaches
from oomguard.units import GIB, show_bytes

SHM = Path("/dev/shm")  # noqa: S108  where DataLoader workers share batches
#: Docker gives 64 MiB, in which a DataLoader with workers soon dies of a bus error.
LEAST_SHM_BYTES = GIB


class Health(str, Enum):
    """How well a thing works here."""

    OK = "ok"
    OPTIONAL = "optional"  # more would be possible
    PROBLEM = "problem"  # jobs, or oomguard, will suffer from it


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One thing that was looked at, and what to do about it."""

    about: str
    state: Health
    text: str
    next_step: str = ""


def look_at(interpreter: Interpreter) -> Iterator[Checked]:
    """Yield what there is to say of this machine and of the job's Python, one after the other."""
    frameworks = {name: one.title for one in ADAPTERS for name in one.python_packages}
    libraries = dict.fromkeys(["torch", "accelerate", *(p for one in Family for p in one.packages)])
    versions = versions_of(interpreter.python, {**libraries, "peft": None, **frameworks})
    yield _python(interpreter, versions, frameworks)
    yield _gpus()
    yield _host()
    yield _shm()
    yield _cgroup()
    yield from _strategies(interpreter)
    yield _tracing(interpreter.python)
    if "torch" in versions:
        yield _monitor(interpreter.python)


def _python(
    interpreter: Interpreter, versions: Mapping[str, str], frameworks: Mapping[str, str]
) -> Checked:
    if "torch" not in versions:
        return Checked(
            about="python",
            state=Health.PROBLEM,
            text=f"{interpreter.python} has no torch",
            next_step="Activate the framework's environment, or name its Python with --python.",
        )
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    known = [title for name, title in frameworks.items() if name in versions]
    runs = ", ".join([*known, "scripts on the Hugging Face Trainer"])
    return Checked(
        about="python", state=Health.OK, text=f"{interpreter.python}: {found}; can run {runs}"
    )


def _gpus() -> Checked:
    found = gpus()
    if not found:
        return Checked(
            about="gpu", state=Health.OPTIONAL, text="no NVIDIA GPU is visible: jobs run on the CPU"
        )
    text = ", ".join(
        f"{gpu.index}: {gpu.name}, {show_bytes(gpu.used_bytes)} of "
        f"{show_bytes(gpu.total_bytes)} in use"
        for gpu in found
    )
    return Checked(about="gpu", state=Health.OK, text=text)


def _host() -> Checked:
    memory = host_memory()
    return Checked(
        about="host memory",
        state=Health.OK,
        text=f"{show_bytes(memory.available_bytes)} of {show_bytes(memory.total_bytes)} free",
    )


def _shm() -> Checked:
    try:
        size_bytes = shutil.disk_usage(SHM).total
    except OSError as error:
        return Checked(
            about="shared memory", state=Health.PROBLEM, text=error.strerror or str(error)
        )
    if size_bytes < LEAST_SHM_BYTES:
        return Checked(
            about="shared memory",
            state=Health.PROBLEM,
            text=f"{SHM} has only {show_bytes(size_bytes)}: DataLoader workers share batches there",
            next_step="In Docker: --shm-size 8g, or --ipc host.",
        )
    return Checked(
        about="shared memory", state=Health.OK, text=f"{SHM} has {show_bytes(size_bytes)}"
    )


def _cgroup() -> Checked:
    """Create and remove a memory cgroup, as an attempt does: the kernel counts OOM kills in it."""
    own = own_cgroup()
    reason = "no memory cgroup is mounted"
    if own is not None:
        try:
            own.make(name_for(f"doctor-{os.urandom(4).hex()}")).remove()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return Checked(
                about="cgroup",
                state=Health.OK,
                text="each attempt gets its own: the kernel's OOM kills are counted, and "
                "--host-memory-by cgroup works",
            )
    return Checked(
        about="cgroup",
        state=Health.OPTIONAL,
        text=f"none can be created ({reason}): --host-memory-by cgroup does not work, and "
        "OOM kills are read from the counters of the cgroups that the job runs in",
    )


def _strategies(interpreter: Interpreter) -> Iterator[Checked]:
    strategies = load_strategies(None)
    lacking: dict[str, list[str]] = {}
    for strategy in strategies:
        for package in strategy.needs:
            if package not in interpreter.packages:
                lacking.setdefault(package, []).append(strategy.id)
    missing = {strategy for ids in lacking.values() for strategy in ids}
    yield Checked(
        about="strategies",
        state=Health.OK,
        text=f"{len(strategies) - len(missing)} of {len(strategies)} need nothing that is missing",
    )
    for package, ids in lacking.items():
        yield Checked(
            about="strategies",
            state=Health.OPTIONAL,
            text=f"{', '.join(ids)}: {package} is not installed",
            next_step=f"{interpreter.python} -m pip install {package}",
        )


def _tracing(python: str) -> Checked:
    tracer = tracer_of((python, sys.executable), Family.HF.packages)
    if tracer is None:
        return Checked(
            about="plan",
            state=Health.OPTIONAL,
            text="estimates by arithmetic alone: no torch and transformers to trace a step with",
            next_step="pip install 'oomguard[trace]'",
        )
    return Checked(about="plan", state=Health.OK, text="traces a training step")


def _monitor(python: str) -> Checked:
    reached = False
    with suppress(OomguardError):
        reached = monitor_reaches(python)
    if reached:
        return Checked(about="monitor", state=Health.OK, text="reaches the job's processes")
    return Checked(
        about="monitor",
        state=Health.PROBLEM,
        text="does not reach the job's processes: failures are diagnosed from log and exit code, "
        "and no steps are counted",
        next_step="Check that nothing replaces PYTHONPATH or sitecustomize, and that Python does "
        "not run with -I, -E or -S.",
    )
