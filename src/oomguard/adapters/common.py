"""What adapters do alike: carry over the environment, and put an edited config into a folder."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from oomguard.adapters import allocator_env
from oomguard.adapters.contract import JobRequest
from oomguard.adapters.hf import accelerate
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.configfile.document import Document, Source
from oomguard.configfile.layered import Settings
from oomguard.job.command import File
from oomguard.job.plan import Offload, Plan, Sharding
from oomguard.job.training_job import Job, World

_LAUNCH_NAMES = ("CUDA_VISIBLE_DEVICES", *allocator_env.NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A combination that a framework refuses: its own message, and when it says so."""

    message: str
    when: Callable[[Settings, Job, Plan], bool]


def first_refusal(
    refusals: Iterable[Refusal], settings: Settings, job: Job, plan: Plan
) -> str | None:
    """Return the message of the first refusal that holds, None if none does."""
    return next((r.message for r in refusals if r.when(settings, job, plan)), None)


def launch_env(env: Mapping[str, str], names: Iterable[str] = ()) -> dict[str, str]:
    """Keep those variables of an environment that decide how the job is started."""
    return {name: env[name] for name in (*_LAUNCH_NAMES, *names) if name in env}


def config_copy(settings: Settings, folder: str) -> tuple[File, ...]:
    """Put the config, under its own name, into a folder; nothing where there is no config."""
    if settings.file is None:
        return ()
    name = posixpath.basename(settings.file.path)
    return (File(path=posixpath.join(folder, name), text=settings.file.text),)


def attempt_env(job: Job, plan: Plan) -> dict[str, str]:
    """Return the environment of an attempt: the user's, with the plan's allocator if it differs."""
    if plan.allocator is None or plan.allocator is job.asked.allocator:
        return dict(job.env)
    return allocator_env.with_allocator(job.env, plan.allocator)


def launched_world(launch: LauncherCommand, request: JobRequest) -> World:
    """Return how many ranks a launcher starts, from its options or its own config file."""
    path = launch_config(launch, request)
    return launch.world(request.gpus, request.files.get(path, "") if path else "")


def launch_config(launch: LauncherCommand | None, request: JobRequest) -> str | None:
    """Return the launcher's own config file, absolute; None if it has none."""
    name = launch.config_file if launch else None
    return posixpath.join(request.cwd, name) if name else None


def launch_text(launch: LauncherCommand | None, request: JobRequest) -> str:
    """Return the text of the launcher's own config file; empty where there is none."""
    path = launch_config(launch, request)
    return request.files.get(path, "") if path else ""


def launch_zero(launch: LauncherCommand | None, request: JobRequest, config: str) -> str | None:
    """Return the DeepSpeed file (absolute) in accelerate's words or its config; None if none."""
    if launch is None or launch.launcher is not Launcher.ACCELERATE:
        return None
    name = accelerate.deepspeed_file(launch.options, config)
    return posixpath.join(request.cwd, name) if name else None


def launch_sharding(
    launch: LauncherCommand, request: JobRequest, config: str
) -> tuple[Sharding | None, frozenset[Offload] | None]:
    """Read sharding and offload from accelerate's words, its config and the file it names."""
    named = launch_zero(launch, request, config)
    return accelerate.sharding(launch.options, config, request.files.get(named) if named else None)


def own_launch_config(launch: LauncherCommand, job: Job) -> Document | None:
    """Return accelerate's config file as the user wrote it; None where there is none."""
    path = posixpath.join(job.cwd, launch.config_file) if launch.config_file else ""
    text = job.files.get(path)
    return Document.parse(Source(path=path, text=text)) if text is not None else None
