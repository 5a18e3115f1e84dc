"""From the command line and the config file to a job that can be supervised."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from oomguard.adapters.base import Adapter, Request
from oomguard.adapters.registry import adapter_named, recognise, recognise_command
from oomguard.config import Loaded, Options, load
from oomguard.devices import gpus
from oomguard.discover import load_strategies, select
from oomguard.errors import UsageError, Where
from oomguard.interpreter import Interpreter, find
from oomguard.job import Job
from oomguard.ladder import Framework, Ladder
from oomguard.process.limits import CapBy, Caps
from oomguard.record import Limits
from oomguard.strategy import Fidelity

MAX_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a run needs before its first attempt."""

    job: Job
    adapter: Adapter
    ladder: Ladder
    limits: Limits
    caps: Caps
    interpreter: Interpreter
    runs: Path
    name: str


def prepare(train: Path | None, command: tuple[str, ...], given: Options) -> Prepared:
    """Find framework, Python, strategies and caps for a config file or a command line.

    What is `given` on the command line beats the `oomguard:` block of the file.

    Raises:
        UsageError: for whatever cannot be done as asked; nothing was started by then.
    """
    if (train is None) == (not command):
        raise UsageError(
            "one job is needed: a config file, or a command after --",
            next_step="oomguard launch train.yaml, or oomguard launch -- COMMAND...",
        )
    cwd = Path.cwd()
    adapter, argv, loaded = _job_of(train, command, given, cwd)
    options = _merge(given, loaded.options if loaded else Options())
    interpreter = find(argv, cwd=cwd, python=options.python)
    job = adapter.read(
        Request(
            argv=argv,
            cwd=str(cwd),
            source=loaded.source if loaded else None,
            env={**os.environ, **interpreter.env},
            gpus=len(gpus()),
            python=interpreter.python,
            packages=interpreter.packages,
        )
    )
    return _assemble(job, adapter, options, interpreter)
