"""What an adapter is: one framework's own words for a job and its plan. Pure: text in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from oomguard.configfile.document import Source
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import Command
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A command as the user would start it, and what the shell knows about its surroundings.

    `source` is the file that `Adapter.config_path` named, without an `oomguard:` block (line
    numbers kept); `env` the environment the job will see; `gpus` how many the job will see;
    `packages` which of the packages that rungs may need the job's Python can import. `files`
    holds the texts of `Adapter.further_files` by path, without those that cannot be read.
    """

    argv: tuple[str, ...]
    cwd: str
    source: Source | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    python: str = "python"
    packages: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)


class Adapter(Protocol):
    """One framework.

    `name` is what `--framework` takes; `title` how its users write it.
    """

    name: str
    title: str

    def recognizes(self, document: Mapping[str, object]) -> bool:
        """Whether a config document (parsed YAML or JSON, top level) can be this framework's."""
        ...

    def recognizes_command(self, argv: tuple[str, ...]) -> bool:
        """Return whether a command line starts this framework."""
        ...

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the command that starts this config file by hand.

        `command` is the `oomguard: command:` of the file, empty where there is none.

        Raises:
            ConfigError: if the file does not say enough, for example which script to run.
        """
        ...

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the config file in a command line, as written there; None if it has none."""
        ...

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the files that `read` wants beside the config (absolute), such as DeepSpeed's.

        It is asked again with what was found, until it names no other: a file may name a file.

        Raises:
            ConfigError: as `read` does.
        """
        ...

    def read(self, request: JobRequest) -> Job:
        """Read the job, with the framework's own defaults and command-line flags over the file.

        Raises:
            ConfigError: for a value of the wrong type, with file, line and key.
        """
        ...

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Add the choices that the framework couples to a change; `job.asked` stays as it is."""
        ...

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return where the job puts its checkpoints; None where nothing can go on from them."""
        ...

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what of a checkpoint under `before` survives under `after`, and why not more."""
        ...

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the command that runs `plan`; new files go into `folder` (absolute).

        Only settings in which `plan` differs from `job.asked` are edited, each where it wins
        (a flag on the command line, else the file); comments, order and other keys stay. `begins`
        says from which checkpoint to go on; without one the user's own settings hold.
        """
        ...

    def as_trial(self, job: Job, folder: str) -> Job:
        """Give the job as one to try for a few steps: all it writes goes into `folder` (absolute).

        It saves no checkpoint, evaluates nothing, tells no tracker and pushes to no hub; what
        decides over the memory of a training step is as it was.
        """
        ...

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what of the job, beyond its plan, decides how much memory it takes."""
        ...

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Say why the framework would refuse this plan, or None. Source: facts and a test each."""
        ...

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Return the packages that this plan needs and the asked one does not."""
        ...
