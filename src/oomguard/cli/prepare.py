"""From the command line and the config file to a job that can be supervised."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path

from oomguard.adapters.contract import Adapter, JobRequest
from oomguard.adapters.registry import adapter_named, detect, detect_command
from oomguard.cli.options_block import BLOCK, Loaded, Options, load
from oomguard.dataset.lengths import with_lengths
from oomguard.errors import UsageError, Where
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Framework, Ladder
from oomguard.ladder.load import load_strategies, select
from oomguard.ladder.strategy import Fidelity, Strategy
from oomguard.machine.gpus import gpus
from oomguard.machine.interpreter import Interpreter, find, find_or_guess
from oomguard.process.limits import CapBy, Caps
from oomguard.run.events import Limits
from oomguard.units import MIB, show_bytes

MAX_ATTEMPTS = 40
#: A cap below it is a slip of the unit: not even an interpreter with nothing imported starts.
LEAST_HOST_MEMORY_BYTES = 64 * MIB
RUNS = "oomguard-runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a run needs before its first attempt."""

    job: Job
    adapter: Adapter
    ladder: Ladder
    limits: Limits
    caps: Caps
    runs: Path
    name: str


def prepare(
    train: Path | None,
    command: tuple[str, ...],
    given: Options,
    *,
    planned_gpus: int | None = None,
) -> Prepared:
    """Find framework, Python, strategies and caps for a config file or a command line.

    What is `given` on the command line beats the `oomguard:` block of the file. With
    `planned_gpus` the job is read as it would be on a machine with so many GPUs and with all
    that rungs may need, whatever this machine has.

    Raises:
        UsageError: for whatever cannot be done as asked; nothing was started by then.
    """
    if (train is None) == (not command):
        raise UsageError(
            "pass either a config file or a command after --",
            next_step="oomguard launch train.yaml, or oomguard launch -- COMMAND...",
        )
    adapter, argv, loaded = _job_of(train, command, given)
    options = _merge(given, loaded.options if loaded else Options())
    _check(options, given, file=str(train) if train else None)
    job = _job(adapter, argv, loaded, options, planned_gpus)
    strategies = select(
        load_strategies(Path(options.strategies) if options.strategies else None), options.ladder
    )
    limits = _limits(options, strategies)
    return Prepared(
        job=job,
        adapter=adapter,
        ladder=ladder_of(adapter, strategies, limits.allow),
        limits=limits,
        caps=caps_of(limits),
        runs=Path(options.runs_dir or RUNS),
        name=options.name or _name(job),
    )


def _job(
    adapter: Adapter,
    argv: tuple[str, ...],
    loaded: Loaded | None,
    options: Options,
    planned_gpus: int | None,
) -> Job:
    """Read the job with what this machine, or the one planned for, has."""
    cwd = Path.cwd()
    here = gpus() if planned_gpus is None else ()
    if planned_gpus is None:
        interpreter, cards = find(argv, cwd=cwd, python=options.python), len(here)
    else:
        interpreter, cards = find_or_guess(argv, cwd=cwd, python=options.python), planned_gpus
    job = _read(adapter, argv, loaded, interpreter, cards)
    bfloat16 = all(gpu.bfloat16 for gpu in here)
    job = replace(job, checkpoint_every=options.checkpoint_every, bfloat16=bfloat16)
    return with_lengths(job, adapter.memory_settings(job))


def ladder_of(adapter: Adapter, strategies: tuple[Strategy, ...], allow: Fidelity) -> Ladder:
    """Return the ladder of a run from its strategies and its framework."""
    framework = Framework(
        normalize=adapter.normalize,
        refusal=adapter.refusal,
        required_packages=adapter.required_packages,
        resume_mode=adapter.resume_mode,
    )
    return Ladder(strategies=strategies, framework=framework, allow=allow)


def caps_of(limits: Limits) -> Caps:
    """Return the caps of each attempt."""
    return Caps(
        host_memory_bytes=limits.host_memory_bytes,
        host_memory_by=CapBy(limits.host_memory_by or CapBy.RLIMIT),
        gpu_memory_bytes=limits.gpu_memory_bytes,
    )


def _limits(options: Options, strategies: tuple[Strategy, ...]) -> Limits:
    return Limits(
        ladder=tuple(strategy.id for strategy in strategies if not strategy.preflight),
        allow=options.allow or Fidelity.NEW_RECIPE,
        max_attempts=options.max_attempts or MAX_ATTEMPTS,
        host_memory_bytes=options.host_memory_bytes,
        host_memory_by=options.host_memory_by if options.host_memory_bytes else None,
        gpu_memory_bytes=options.gpu_memory_bytes,
        hang_timeout_s=options.hang_timeout_s,
        relax=options.relax is not False,
        grow=bool(options.grow),
        probe=bool(options.probe),
        strategies=str(Path(options.strategies).absolute()) if options.strategies else None,
    )


def _job_of(
    train: Path | None, command: tuple[str, ...], given: Options
) -> tuple[Adapter, tuple[str, ...], Loaded | None]:
    """Give the framework, the command that starts the job by hand, and its config if it has one."""
    named = adapter_named(given.framework) if given.framework else None
    if train is None:
        adapter = named or detect_command(command)
        path = adapter.config_path(command)
        return adapter, command, load(Path(path)) if path else None
    loaded = load(train)
    options = loaded.options
    if named is None and options.framework:
        named = adapter_named(options.framework)
    adapter = named or detect(loaded.document, options.command, file=str(train))
    return adapter, adapter.command_for(loaded.source, loaded.document, options.command), loaded


def _read(
    adapter: Adapter,
    argv: tuple[str, ...],
    loaded: Loaded | None,
    interpreter: Interpreter,
    cards: int,
) -> Job:
    request = JobRequest(
        argv=argv,
        cwd=str(Path.cwd()),
        source=loaded.source if loaded else None,
        env={**os.environ, **interpreter.env},
        gpus=cards,
        python=interpreter.python,
        packages=interpreter.packages,
    )
    job = adapter.read(_with_files(adapter, request))
    return replace(job, env={**job.env, **interpreter.env})


def _with_files(adapter: Adapter, request: JobRequest) -> JobRequest:
    """Read the files that the adapter names, and those that such a file names in turn."""
    texts: dict[str, str | None] = {}
    while named := [path for path in adapter.referenced_files(request) if path not in texts]:
        texts |= {path: _text(path) for path in named}
        found = {path: text for path, text in texts.items() if text is not None}
        request = replace(request, files=found)
    return request


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _merge(given: Options, block: Options) -> Options:
    """Lay what was given on the command line over the block of the file."""
    named = {one.name: getattr(given, one.name) for one in fields(Options)}
    stated = {name: value for name, value in named.items() if value not in (None, ())}
    merged = replace(block, **stated)
    by = merged.host_memory_by or CapBy.RLIMIT.value
    if given.host_memory_by and not merged.host_memory_bytes:
        raise UsageError(
            "--host-memory-by needs a host memory limit",
            where=Where(key="--host-memory-by"),
            next_step="Add --host-memory SIZE.",
        )
    return replace(merged, host_memory_by=by)


def _check(options: Options, given: Options, *, file: str | None) -> None:
    """Refuse values that could not be meant, wherever they were written."""
    cap_bytes, name = options.host_memory_bytes, options.name
    if cap_bytes is not None and cap_bytes < LEAST_HOST_MEMORY_BYTES:
        raise UsageError(
            f"{show_bytes(cap_bytes)} of host memory is too little for Python to start",
            where=_where("host_memory", file=None if given.host_memory_bytes else file),
            next_step=f"Use at least {show_bytes(LEAST_HOST_MEMORY_BYTES)}, and include the unit.",
        )
    if name is not None and (name in (".", "..") or "/" in name):
        raise UsageError(
            f"{name!r} is not a valid folder name",
            where=_where("name", file=None if given.name else file),
            next_step="Use a name without a slash; --runs DIR sets the parent folder.",
        )


def _where(option: str, *, file: str | None) -> Where:
    flag = f"--{option.replace('_', '-')}"
    return Where(file=file, key=f"{BLOCK}.{option}") if file else Where(key=flag)


def _name(job: Job) -> str:
    stem = Path(job.config.path).stem if job.config else job.framework
    return f"{stem}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}"
