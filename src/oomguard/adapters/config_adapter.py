"""`ConfigAdapter`: a framework that is started by a command line over a config file.

A subclass describes it: the keys that hold the fields of a plan (`bindings`), what it refuses, and
how its command line is parsed (`split`).
"""

from __future__ import annotations

import posixpath
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from oomguard.adapters.contract import Adapter, Alternative, Claim, JobRequest
from oomguard.adapters.effects import Effect
from oomguard.adapters.fields import Bindings, Key, maybe_text
from oomguard.adapters.invocation import CONFIG, Invocation, with_config
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.trial import with_settings
from oomguard.configfile.document import Source
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where, did_you_mean
from oomguard.job.checkpoint import Continuation
from oomguard.job.command import Command, File
from oomguard.job.plan import Allocator, Plan, Quantization
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import Direction, Unmodelled

#: The first is what torch before 2.9 reads, and later ones still read.
ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_EXPANDABLE = "expandable_segments"
_LAUNCH_NAMES = ("CUDA_VISIBLE_DEVICES", *ALLOCATOR_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A combination that a framework refuses: its own message, and the condition.

    `key` is a setting of the combination that no field of a plan holds.
    """

    message: str
    when: Callable[[Settings, Job, Plan], bool]
    key: str | None = None


def not_training(lacks: str, where: Where) -> ConfigError:
    """Return the error for a config that does not train; `lacks` is what training would need."""
    return ConfigError(
        f"this config does not train: it has {lacks}",
        where=where,
        next_step="Pass a training config. Merging, inference and evaluation do not need oomguard.",
    )


class ConfigAdapter(Adapter):
    """One such framework.

    `environment` names the variables that decide how its jobs start; `elsewhere` the fields of a
    plan that no key holds; `groups` all of its settings, where they are listed, else `effects`
    those whose effect on memory is not modelled; `output` the key of the folder it writes to.
    `starts` is the command that a config file is appended to, after the args in `option`; `usage`
    what to type instead of a command that is not understood.
    """

    bindings: Bindings
    refusals: tuple[Refusal, ...] = ()
    effects: tuple[Effect, ...] = ()
    groups: SettingGroups | None = None
    environment: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ("allocator",)
    output: ClassVar[Key[str] | Key[str | None]] = maybe_text("output_dir")
    starts: tuple[str, ...] = ()
    option: tuple[str, ...] = ()
    usage: str

    @abstractmethod
    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line; None if it does not start this framework's training."""

    def invocation(self, argv: tuple[str, ...], source: Source | None) -> Invocation:
        """Return the parsed command line.

        Raises:
            ConfigError: if it does not start this framework's training.
        """
        found = self.split(argv, source)
        if found is None:
            raise ConfigError(
                f"is not a training command of {self.title}",
                where=Where(key=" ".join(argv[:2])),
                next_step=self.usage,
            )
        return found

    def of_job(self, job: Job) -> Invocation:
        """Return the command line of a job, parsed."""
        return self.invocation(job.argv, job.config)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim the commands that it parses."""
        return Claim.OWN if self.split(argv, None) else Claim.NO

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the command that starts this file."""
        return with_config(command or self.starts, *self.option, source.path)

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the config file in a command line."""
        found = self.split(argv, None)
        return found.config if found else None

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        invocation = self.invocation(request.argv, request.source)
        device = self.device(invocation.settings, request.gpus)
        world = self.world(invocation, request, device)
        cpu, env = device is Device.CPU, request.env
        fields = {
            "allocator": None if cpu else allocator_of(env),
            **self.fields(invocation, request, world),
        }
        names = (*_LAUNCH_NAMES, *self.environment)
        output = self.output.of(invocation.settings)
        return Job(
            framework=self.name,
            argv=invocation.argv(),
            cwd=request.cwd,
            config=request.source,
            asked=Plan(**fields),  # type: ignore[arg-type]  # each binding reads its field's type
            world=world,
            device=device,
            env={name: env[name] for name in names if name in env},
            python=request.python,
            packages=request.packages,
            output_dir=posixpath.join(request.cwd, output) if output else None,
            files=request.files,
        )

    def device(self, settings: Settings, gpus: int) -> Device:
        """Return where the job computes."""
        return Device.CUDA if gpus else Device.CPU

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks the job has."""
        return invocation.launch.world(request.gpus) if invocation.launch else World()

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the fields of the requested plan."""
        return self.bindings_of(invocation).read(invocation.settings)

    def bindings_of(self, invocation: Invocation) -> Bindings:
        """Return the bindings of one command, if they differ between commands."""
        return self.bindings

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the user's command with a copy of the config, edited where the plan differs."""
        invocation = self.of_job(job)
        settings = self.resumed(self.edit(invocation, job, plan), job, begins)
        invocation, files = self.shard(replace(invocation, settings=settings), job, plan, folder)
        config, file = None, invocation.settings.file
        if file is not None:
            config = posixpath.join(folder, posixpath.basename(file.path))
            files = (*files, File(path=config, text=file.text))
        return Command(
            argv=invocation.argv(config),
            cwd=job.cwd,
            env=self.env(job, plan, begins),
            files=files,
            config=config,
        )

    def seed(self, job: Job) -> int | None:
        """Return the seed that the config or the command states."""
        stated = self.of_job(job).settings.get("seed")
        try:
            return None if stated is None else int(str(stated))
        except ValueError:
            return None

    def edit(self, invocation: Invocation, job: Job, plan: Plan) -> Settings:
        """Return the settings with the plan's fields written into their keys."""
        return self.bindings_of(invocation).apply(invocation.settings, job, plan)

    def resumed(self, settings: Settings, job: Job, begins: Continuation | None) -> Settings:
        """Return the settings with the checkpoint to resume from."""
        return settings

    def shard(
        self, invocation: Invocation, job: Job, plan: Plan, folder: str
    ) -> tuple[Invocation, tuple[File, ...]]:
        """Return the command with the plan's sharding and offload, and the files that hold them."""
        return invocation, ()

    def env(self, job: Job, plan: Plan, begins: Continuation | None) -> dict[str, str]:
        """Return the environment of an attempt: the user's, with the plan's allocator."""
        if plan.allocator is None or plan.allocator is job.asked.allocator:
            return dict(job.env)
        return with_allocator(job.env, plan.allocator)

    def as_trial(self, job: Job, folder: str) -> Job:
        """Return the job as a trial."""
        invocation = self.of_job(job)
        settings = self.quiet(invocation.settings, folder)
        return with_settings(job, settings, replace(invocation, settings=settings).argv(), folder)

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Return the settings of a trial: its output goes into `folder`, nothing is saved."""
        return settings.set(self.output.name, folder)

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return the effects of settings that the job states, and those it seems to misspell."""
        settings, groups = self.of_job(job).settings, self.groups_of(job)
        found = (effect.of(settings) for effect in (groups.effects if groups else self.effects))
        known = self.known_to(job)
        guesses = {key: did_you_mean(key, known) for key in self.unknown(job)}
        misspelled = (
            Unmodelled(
                key=key,
                effect=f"{self.title} has no such setting. {guess}",
                direction=Direction.EITHER,
                line=settings.origin(key).line,
            )
            for key, guess in guesses.items()
            if guess
        )
        return (*(one for one in found if one is not None), *misspelled)

    def unknown(self, job: Job) -> tuple[str, ...]:
        """Return the keys of the config and the command line that the framework does not have."""
        settings, known = self.of_job(job).settings, self.known_to(job)
        if not known:
            return ()
        file = settings.file.values if settings.file else ()
        flags = (*settings.early.names(), *settings.late.names())
        outer = (name.partition(".")[0].removeprefix("no_") for name in flags)
        stated = dict.fromkeys((*map(str, file), *outer))
        known |= {CONFIG} | {key.removeprefix("no_") for key in known}
        return tuple(key for key in stated if key not in known)

    def groups_of(self, job: Job) -> SettingGroups | None:
        """Return all settings of the job's command, if they are listed."""
        return self.groups

    def tables(self) -> Mapping[str, SettingGroups]:
        """Return all settings of each of its commands, as far as they are listed."""
        return {self.title: self.groups} if self.groups else {}

    def known_to(self, job: Job) -> frozenset[str]:
        """Return the names of these settings; of nested ones, of the mapping that holds them."""
        groups = self.groups_of(job)
        return frozenset(key.partition(".")[0] for key in groups.names) if groups else frozenset()

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Return the framework's own message for a plan that it refuses."""
        invocation = self.of_job(job)
        settings = invocation.settings
        said = next((r.message for r in self.refusals if r.when(settings, job, plan)), None)
        return (
            said
            or self.refuses_sharding(invocation, job, plan)
            or self.bindings_of(invocation).unwritable(
                settings, job, plan, elsewhere=self.unbound(job, plan)
            )
        )

    def alternatives(self, job: Job) -> tuple[Alternative, ...]:
        """Return the job without quantization and without the settings that collide with it."""
        found = []
        plain = replace(job, asked=replace(job.asked, quantization=Quantization.NONE))
        if job.asked.quantization is not plain.asked.quantization and self._accepts(plain):
            found.append(Alternative(change="without quantization", job=plain))
        settings = self.of_job(job).settings
        keys = [r.key for r in self.refusals if r.key and r.when(settings, job, job.asked)]
        source = job.config
        for key in keys:
            if source is not None and source.document.has(key):
                source = replace(source, text=source.document.without(key))
        smaller = self.read(
            JobRequest(
                argv=job.argv,
                cwd=job.cwd,
                source=source,
                env=job.env,
                gpus=job.world.size,
                python=job.python,
                files=job.files,
            )
        )
        if keys and self._accepts(smaller):
            found.append(Alternative(change=f"without {' and '.join(keys)}", job=smaller))
        return tuple(found)

    def _accepts(self, job: Job) -> bool:
        return self.refusal(job, job.asked) is None

    def refuses_sharding(self, invocation: Invocation, job: Job, plan: Plan) -> str | None:
        """Return why the plan's sharding or offload cannot be written, None if it can."""
        return None

    def unbound(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the fields that no key has to hold in this change of plan."""
        return self.elsewhere


def allocator_of(env: Mapping[str, str]) -> Allocator:
    """Return the allocator settings of an environment."""
    options = ",".join(env.get(name, "") for name in ALLOCATOR_NAMES).split(",")
    on = any(option.strip() == f"{_EXPANDABLE}:True" for option in options)
    return Allocator.EXPANDABLE if on else Allocator.DEFAULT


def with_allocator(env: Mapping[str, str], wanted: Allocator) -> dict[str, str]:
    """Return an environment with the allocator's choice; its other options stay."""
    result = dict(env)
    for name in ALLOCATOR_NAMES:
        if name in result or (name == ALLOCATOR_NAMES[0] and ALLOCATOR_NAMES[1] not in result):
            result[name] = _edited(result.get(name, ""), wanted)
    return result


def _edited(options: str, wanted: Allocator) -> str:
    kept = [o for o in options.split(",") if o.strip() and not o.strip().startswith(_EXPANDABLE)]
    if wanted is Allocator.EXPANDABLE:
        kept.append(f"{_EXPANDABLE}:True")
    return ",".join(kept)
