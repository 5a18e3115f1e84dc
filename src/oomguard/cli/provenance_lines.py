"""The environment and the data of a run in words."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.cli.plan_text import counted
from oomguard.job.provenance import DataFingerprint, Environment, GitState
from oomguard.units import show_bytes

#: Packages that a short line names; the others are in the report.
_SHORT = ("torch", "transformers", "accelerate", "peft", "trl", "deepspeed", "bitsandbytes")
#: Digits of a commit or of a hash that a line shows.
_DIGITS = 12


def environment_facts(found: Environment) -> Iterator[tuple[str, str]]:
    """Yield what is known of a run's environment, by name."""
    cards = ", ".join(f"{gpu.name} ({show_bytes(gpu.total_bytes)})" for gpu in found.gpus)
    memory = show_bytes(found.host_memory_bytes) if found.host_memory_bytes else ""
    yield "system", found.system
    yield "host memory", memory
    yield "gpus", cards or "none"
    yield "driver", found.driver or ""
    yield "python", " ".join(filter(None, (found.python, found.executable)))
    yield "cuda", found.cuda or ""
    yield "packages", ", ".join(f"{name} {found.packages[name]}" for name in found.packages)
    yield "git", git_text(found.git) if found.git else ""


def environment_line(found: Environment) -> str:
    """Return what decides memory of a run's environment, on one line."""
    cards = [f"{gpu.name} ({show_bytes(gpu.total_bytes)})" for gpu in found.gpus]
    shown = [f"{name} {found.packages[name]}" for name in _SHORT if name in found.packages]
    parts = (
        *(cards or ["no GPU"]),
        f"driver {found.driver}" if found.driver else "",
        f"Python {found.python}" if found.python else "",
        *shown,
        f"CUDA {found.cuda}" if found.cuda else "",
        f"git {git_text(found.git)}" if found.git else "",
    )
    return ", ".join(filter(None, parts))


def git_text(state: GitState) -> str:
    """Return a commit, and whether files differ from it."""
    changes = {True: ", with changes", False: "", None: ", changes not known"}[state.dirty]
    return f"{state.commit[:_DIGITS]}{changes}"


def data_line(found: DataFingerprint) -> str:
    """Return what identifies the data of a run, on one line."""
    parts = []
    if found.files:
        size = show_bytes(sum(one.size_bytes for one in found.files))
        parts.append(f"{counted(len(found.files) + found.left_out, 'file')} ({size})")
    if found.samples is not None:
        parts.append(counted(found.samples, "sample"))
    if found.lengths is not None:
        lengths = found.lengths
        most = f"95% at most {lengths.percentile_95}, longest {lengths.longest} tokens"
        parts.append(f"median {lengths.median}, {most}")
    if len(found.files) == 1 and found.files[0].sha256:
        parts.append(f"sha256 {found.files[0].sha256[:_DIGITS]}")
    parts += [f"{name}: not a local file" for name in found.elsewhere]
    if found.seed is not None:
        parts.append(f"seed {found.seed}")
    return ", ".join(parts) or "not known: the job names no files that could be read"
