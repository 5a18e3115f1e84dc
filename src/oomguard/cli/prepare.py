"""Turn a command line and a config file into a job that is ready to launch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from oomguard import present
from oomguard.adapters.contract import Adapter, Claim, JobRequest
from oomguard.adapters.registry import ADAPTERS, adapter_named, detect, detect_command
from oomguard.adapters.wrappers import Unwrapped, unwrap, unwrap_script
from oomguard.catalogue.checkpoint_formats import named_format, stored_format
from oomguard.catalogue.lookup import find_model, find_tokenizer
from oomguard.cli.options import BLOCK, Options, Stated, limits_of, options_of, read_block
from oomguard.configfile.document import Source
from oomguard.dataset.lengths import with_lengths
from oomguard.errors import ConfigError, FrameworkError, UsageError, Where, did_you_mean
from oomguard.estimate.colocated import with_engine
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Framework, Ladder
from oomguard.ladder.load import load_strategies, select
from oomguard.ladder.strategy_contract import Fidelity, Strategy
from oomguard.machine.gpus import gpus
from oomguard.machine.interpreter import (
    Interpreter,
    find,
    find_or_guess,
    python_of_wrapper,
    working_folder,
)
from oomguard.machine.job_tokenizer import JobTokenizer
from oomguard.process.limits import CapBy, Caps
from oomguard.run.events import Limits
from oomguard.units import MIB, show_bytes

#: A larger file is not a config.
MOST_BYTES = 4 * MIB
#: Room for what is added to a name: 255 bytes is what file systems take.
MOST_NAME_BYTES = 200
#: Below this not even a bare Python starts, so the unit is probably missing.
LEAST_HOST_MEMORY_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A config file: its text and values without the `oomguard:` block, and that block's options.

    Lines keep their numbers.
    """

    source: Source
    document: Mapping[str, object]
    block: Stated


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run needs before its first attempt."""

    job: Job
    adapter: Adapter
    ladder: Ladder
    limits: Limits
    caps: Caps
    runs: Path
    name: str
    options: Options


def prepare(
    train: Path | None,
    command: tuple[str, ...],
    given: Stated,
    *,
    planned_gpus: int | None = None,
    like: Job | None = None,
) -> Prepared:
    """Find framework, Python, strategies and limits for a config file or a command line.

    Options `given` on the command line override the `oomguard:` block of the file. With
    `planned_gpus` the job is read for a machine with that many GPUs and all optional packages;
    `like` is the same job, read before, whose samples are not counted again.

    Raises:
        UsageError: for anything that cannot be done as requested; nothing was started.
    """
    if (train is None) == (not command):
        raise UsageError(
            "got both a config file and a command after --, pass one of them"
            if train
            else "needs a config file, or a command after --",
            next_step="For example train.yaml, or -- llamafactory-cli train train.yaml",
        )
    adapter, unwrapped, loaded, options = _requested(train, command, given)
    _check(options, given, file=str(train) if train else None)
    job = _job(adapter, unwrapped, loaded, options, planned_gpus=planned_gpus, like=like)
    known = load_strategies(Path(options.strategies) if options.strategies else None)
    strategies = select(known, options.ladder)
    ids = tuple(strategy.id for strategy in strategies if not strategy.preflight)
    limits = limits_of(options, ids, into=Limits)
    divides = adapter.divides and limits.splits and not limits.probe
    return Prepared(
        job=replace(job, divides=divides, inside=limits.inside),
        adapter=adapter,
        ladder=ladder_of(adapter, strategies, limits.allow, known=known),
        limits=limits,
        caps=caps_of(limits),
        runs=Path(options.runs_dir),
        name=options.name or _name(job),
        options=options,
    )


def _requested(
    train: Path | None, command: tuple[str, ...], given: Stated
) -> tuple[Adapter, Unwrapped, Loaded | None, Options]:
    """Return the framework, the command that starts the job, its config if any, and the options."""
    loaded = load(train) if train else None
    options = options_of(given, loaded.block if loaded else {}, of=Options)
    named = adapter_named(options.framework) if options.framework else None
    if loaded is not None:
        unwrapped = _unwrap(options.command)
        adapter = named or detect(loaded.document, unwrapped.argv, file=str(train))
        argv = adapter.command_for(loaded.source, loaded.document, unwrapped.argv)
        return adapter, replace(unwrapped, argv=argv), loaded, options
    unwrapped = _unwrap(command)
    adapter = named or detect_command(unwrapped.argv)
    path = adapter.config_path(unwrapped.argv)
    if path is None:
        return adapter, unwrapped, None, options
    loaded = load(Path(path))
    return adapter, unwrapped, loaded, options_of(given, loaded.block, of=Options)


def _unwrap(command: tuple[str, ...]) -> Unwrapped:
    """Return a command without its wrappers, or the one command of a shell script."""
    unwrapped = unwrap(command)
    if any(one.recognizes_command(unwrapped.argv) is not Claim.NO for one in ADAPTERS):
        return unwrapped
    script = unwrap_script(unwrapped.argv, _script_text)
    if script is None:
        return unwrapped
    return replace(
        script,
        wrapper=(*unwrapped.wrapper, *script.wrapper),
        env={**unwrapped.env, **script.env},
        own_python=unwrapped.own_python or script.own_python,
    )


def _script_text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FrameworkError(
            "the shell script cannot be read",
            where=Where(file=name),
            next_step="Pass the training command itself: oomguard launch -- COMMAND",
        ) from error


def load(path: Path) -> Loaded:
    """Read a config file.

    Raises:
        ConfigError: if it cannot be read, is not a YAML or JSON mapping, or its `oomguard:` block
            is wrong, with file, line and key.
    """
    source = Source(path=str(path.absolute()), text=config_text(path))
    whole = source.document
    block = read_block(whole)
    rest = Source(path=source.path, text=whole.without(BLOCK))
    if not set(whole.values) - {BLOCK}:
        raise _error("has no framework settings besides the oomguard: block", path)
    return Loaded(source=rest, document=rest.document.values, block=block)


def config_text(path: Path) -> str:
    """Return the text of a small file that the user wrote.

    Raises:
        ConfigError: if it cannot be read, or is larger than any config.
    """
    if present.is_folder(path):
        raise _error("is a folder, not a config file", path, "Pass the YAML file in it.")
    if present.is_hidden(path):
        raise _error("cannot be read: Permission denied", path, "Fix the permissions.")
    if not present.exists(path):
        names = [file.name for file in path.parent.glob("*")]
        raise _error("does not exist", path, did_you_mean(path.name, names))
    if not present.is_file(path):
        raise _error("is not a regular file", path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _error(
                f"is larger than {show_bytes(MOST_BYTES)}, so it is not a config file", path
            )
        return data.decode("utf-8")
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            "is not UTF-8",
            where=Where(file=str(path), line=line),
            next_step="Save it as UTF-8.",
        ) from error


def _error(what: str, path: Path, next_step: str = "") -> ConfigError:
    return ConfigError(what, where=Where(file=str(path)), next_step=next_step)


def _job(
    adapter: Adapter,
    unwrapped: Unwrapped,
    loaded: Loaded | None,
    options: Options,
    *,
    planned_gpus: int | None,
    like: Job | None,
) -> Job:
    """Read the job for this machine, or for one with `planned_gpus`."""
    cwd, argv = working_folder(), unwrapped.argv
    here = gpus() if planned_gpus is None else ()
    if planned_gpus is None:
        python = options.python
        if unwrapped.own_python and python is None:
            python = python_of_wrapper(unwrapped.wrapper, cwd=cwd)
        if unwrapped.own_python and argv[0].endswith(".py"):  # uv run train.py
            argv = ("python", *argv)
        interpreter, cards = find(argv, cwd=cwd, python=python), len(here)
    else:
        interpreter, cards = find_or_guess(argv, cwd=cwd, python=options.python), planned_gpus
    job = _read(adapter, unwrapped, loaded, interpreter, cards)
    wrapper, variables = unwrapped.for_job
    job = replace(
        job,
        wrapper=wrapper,
        env={**job.env, **variables},
        checkpoint_every=options.checkpoint_every,
        bfloat16=all(gpu.bfloat16 for gpu in here),
        hopper=any(gpu.hopper for gpu in here),
    )
    settings = adapter.memory_settings(job)
    smallest = min((gpu.total_bytes for gpu in here), default=0)
    job = _of_model(adapter, job, settings, smallest)
    if like is not None:
        return replace(job, lengths=like.lengths)
    tokenizer = find_tokenizer(settings.model, cwd=cwd) if settings.model else None
    count = JobTokenizer(job.python, tokenizer) if tokenizer else None
    return with_lengths(job, settings, count)


def _of_model(adapter: Adapter, job: Job, settings: MemorySettings, gpu_bytes: int) -> Job:
    """Return the job with what the model's config.json tells; its name where there is none here."""
    if not settings.model:
        return adapter.of_model(job, None)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        model = find_model(settings.model, settings.family, cwd=Path(job.cwd), environment=offline)
    except ConfigError:
        return adapter.of_model(job, None, named_format(settings.model))
    job = with_engine(job, model.architecture, gpu_bytes)
    return adapter.of_model(job, model.type, stored_format(model))


def ladder_of(
    adapter: Adapter,
    strategies: tuple[Strategy, ...],
    allow: Fidelity,
    *,
    known: tuple[Strategy, ...],
) -> Ladder:
    """Return the ladder of a run from its strategies, all `known` ones and its framework."""
    framework = Framework(
        normalize=adapter.normalize,
        refusal=adapter.refusal,
        required_packages=adapter.required_packages,
        resume_mode=adapter.resume_mode,
    )
    return Ladder(strategies=strategies, framework=framework, allow=allow, known=known)


def caps_of(limits: Limits) -> Caps:
    """Return the memory limits of each attempt."""
    return Caps(
        host_memory_bytes=limits.host_memory_bytes,
        host_memory_by=CapBy(limits.host_memory_by or CapBy.RLIMIT),
        gpu_memory_bytes=limits.gpu_memory_bytes,
    )


def _read(
    adapter: Adapter,
    unwrapped: Unwrapped,
    loaded: Loaded | None,
    interpreter: Interpreter,
    cards: int,
) -> Job:
    env = {**os.environ, **interpreter.env, **unwrapped.env}
    request = JobRequest(
        argv=unwrapped.argv,
        cwd=str(working_folder()),
        source=loaded.source if loaded else None,
        env={name: value for name, value in env.items() if value is not None},
        gpus=cards,
        python=interpreter.python,
        packages=interpreter.packages,
    )
    job = adapter.read(_with_files(adapter, request))
    return replace(job, env={**job.env, **interpreter.env})


def _with_files(adapter: Adapter, request: JobRequest) -> JobRequest:
    """Read the files that the config refers to, and those that such a file refers to in turn."""
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


def _check(options: Options, given: Stated, *, file: str | None) -> None:
    """Reject values that cannot be meant, on the command line or in the block."""
    if given.get("host_memory_by") and not options.host_memory_bytes:
        raise UsageError(
            "--host-memory-by needs a host memory limit",
            where=Where(key="--host-memory-by"),
            next_step="Add --host-memory SIZE.",
        )
    cap_bytes, name = options.host_memory_bytes, options.name
    if cap_bytes is not None and cap_bytes < LEAST_HOST_MEMORY_BYTES:
        raise UsageError(
            f"{show_bytes(cap_bytes)} of host memory is too little for Python to start",
            where=_where("host_memory", file=None if given.get("host_memory_bytes") else file),
            next_step=f"Use at least {show_bytes(LEAST_HOST_MEMORY_BYTES)}, and include the unit.",
        )
    if name is not None and len(os.fsencode(name)) > MOST_NAME_BYTES:
        raise UsageError(
            f"is too long for a folder name: {len(os.fsencode(name))} bytes",
            where=_where("name", file=None if given.get("name") else file),
            next_step=f"Use at most {MOST_NAME_BYTES}.",
        )
    if name is not None and (name in (".", "..") or "/" in name):
        raise UsageError(
            f"{name!r} is not a valid folder name",
            where=_where("name", file=None if given.get("name") else file),
            next_step="Use a name without a slash; --runs DIR sets the parent folder.",
        )


def _where(option: str, *, file: str | None) -> Where:
    flag = f"--{option.replace('_', '-')}"
    return Where(file=file, key=f"{BLOCK}.{option}") if file else Where(key=flag)


def _name(job: Job) -> str:
    stem = Path(job.config.path).stem if job.config else job.framework
    return f"{stem}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}"
