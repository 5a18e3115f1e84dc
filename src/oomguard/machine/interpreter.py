"""Find the Python that will run the job, and which packages of the strategies it has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from oomguard import present
from oomguard.errors import FrameworkError, UsageError, Where
from oomguard.job.provenance import JobPython

#: What strategies may need, by the name that is imported.
PACKAGES = ("deepspeed", "bitsandbytes", "liger_kernel")
_PROBE = (
    "import importlib.util as u, json, sys;"
    "print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
)
# torch states its CUDA version in a file: importing it would take seconds.
_FACTS = r"""
import importlib.metadata as m, importlib.util as u, json, os, platform, re, sys
found, cuda = {}, None
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
try:
    place = os.path.dirname(u.find_spec("torch").origin)
    with open(os.path.join(place, "version.py"), encoding="utf-8") as file:
        cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", file.read(), re.M)[1]
except Exception: pass
print(json.dumps({"version": platform.python_version(), "cuda": cuda, "packages": found}))
"""
_FACTS_TIMEOUT_S = 20
# pip writes the second form where the path is too long or has a space in it.
_SHEBANGS = (
    re.compile(rb"\A#!\s*(?P<python>[^\s]*python[0-9.]*)\s*(?:-[^\n]*)?\n"),
    re.compile(rb"\A#!/bin/sh\n'''exec' \"?(?P<python>[^\"\n]*python[0-9.]*)\"? "),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The job's Python: its path, the packages it has of `PACKAGES`, and the job's extra env."""

    python: str
    packages: frozenset[str]
    env: Mapping[str, str]


def working_folder() -> Path:
    """Return the folder that oomguard was started in.

    Raises:
        UsageError: if it was deleted since.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UsageError(
            "the working directory was deleted", next_step="Change to a folder that exists."
        ) from error


def find(argv: tuple[str, ...], *, cwd: Path, python: str | None) -> Interpreter:
    """Find what will run a command as the user's shell would; `python` names another one.

    Raises:
        FrameworkError: if the program or the named Python is not there.
    """
    env = _path_with(python) if python else {}
    program = _program(argv[0], cwd, env.get("PATH", os.environ.get("PATH", os.defpath)), python)
    found = python or _python_of(program)
    return Interpreter(python=found, packages=_packages(found), env=env)


def find_or_guess(argv: tuple[str, ...], *, cwd: Path, python: str | None) -> Interpreter:
    """Find what would run a command, for a plan: a program may be missing on this machine.

    The packages that strategies may need are assumed to exist where the job will run.

    Raises:
        FrameworkError: if the named Python is not there.
    """
    env = _path_with(python) if python else {}
    search = env.get("PATH", os.environ.get("PATH", os.defpath))
    try:
        found = python or _python_of(_program(argv[0], cwd, search, python))
    except FrameworkError:
        found = sys.executable
    return Interpreter(python=found, packages=frozenset(PACKAGES), env=env)


def python_of_wrapper(wrapper: tuple[str, ...], *, cwd: Path) -> str:
    """Return the Python that a program such as `uv run` starts, by asking it.

    Raises:
        FrameworkError: if it does not answer.
    """
    code = "import sys; print(sys.executable)"
    try:
        answer = subprocess.run(
            [*wrapper, "python", "-c", code],
            capture_output=True, check=True, cwd=cwd, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        return answer.stdout.split()[-1]
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise FrameworkError(
            f"{' '.join(wrapper[:2])} starts no Python: {' '.join(detail.split())[-300:]}",
            next_step="Run it without oomguard, or point to the Python with --python.",
        ) from error


def known_python(recorded: str) -> str:
    """Return the Python that was recorded if it is on this machine, else the shell's."""
    if recorded and os.access(recorded, os.X_OK):
        return recorded
    return shutil.which("python3") or "python3"


def versions_of(python: str, packages: Iterable[str]) -> Mapping[str, str]:
    """Return the versions of the packages that a Python has; none if it does not answer."""
    return facts_of(python, packages).packages


def facts_of(python: str, packages: Iterable[str]) -> JobPython:
    """Return a Python's version and those of the packages that it has; nothing if it is silent."""
    try:
        answer = subprocess.run(
            [python, "-c", _FACTS, *packages],
            capture_output=True,
            check=True,
            timeout=_FACTS_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        return msgspec.json.decode(answer.stdout, type=JobPython)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError):
        return JobPython()


def _path_with(python: str) -> dict[str, str]:
    path = Path(python)
    if not (present.is_file(path) and os.access(path, os.X_OK)):
        raise FrameworkError(
            "there is no such Python"
            if not present.is_hidden(path)
            else "this Python cannot be started: Permission denied",
            where=Where(file=python, key="--python"),
            next_step="Pass the path of the interpreter, for example .venv/bin/python.",
        )
    folder = str(path.absolute().parent)  # not resolved: a link in a venv's bin is that venv
    return {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}


def _program(name: str, cwd: Path, search: str, python: str | None) -> Path:
    candidate = cwd / name if os.sep in name else Path(shutil.which(name, path=search) or "")
    if present.is_file(candidate) and os.access(candidate, os.X_OK):
        return candidate
    beside = f" beside {python} or" if python else ""
    raise FrameworkError(
        f"{name!r} is not installed: it is not found{beside} on the PATH",
        next_step="Activate the environment of the framework, or name its Python with --python.",
    )


def _python_of(program: Path) -> str:
    if re.fullmatch(r"python[0-9.]*", program.name):
        return str(program)
    try:
        with program.open("rb") as script:
            head = script.read(4096)
    except OSError:
        head = b""
    match = next((m for m in (rule.search(head) for rule in _SHEBANGS) if m), None)
    named = match["python"].decode(errors="replace") if match else ""
    return named if present.is_file(Path(named)) else shutil.which("python3") or "python3"


def _packages(python: str) -> frozenset[str]:
    """Ask the job's Python; one that does not answer has none of them."""
    try:
        answer = subprocess.run(
            [python, "-c", _PROBE, *PACKAGES],
            capture_output=True,
            check=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        return frozenset(json.loads(answer.stdout))
    except (OSError, ValueError, subprocess.SubprocessError):
        return frozenset()
