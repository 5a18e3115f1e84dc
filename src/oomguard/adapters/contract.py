"""The adapter contract: one framework's spelling of a job and its plan. Pure: text in, text out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from oomguard.configfile.document import Files, Source
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import Command
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import TrainingMethod, Unmodelled


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A command as the user would start it, and its surroundings.

    `source` is the file that `Adapter.config_path` names, without an `oomguard:` block (line
    numbers kept); `env` the environment the job will see; `gpus` how many the job will see;
    `packages` which of the packages that strategies may need the job's Python can import. `files`
    holds the texts of `Adapter.referenced_files` by path, without those that cannot be read.
    """

    argv: tuple[str, ...]
    cwd: str
    source: Source | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    python: str = "python"
    packages: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep what is parsed of the files."""
        object.__setattr__(self, "files", Files.of(self.files))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A change after which a framework accepts a config that it rejects, and the changed job."""

    change: str
    job: Job


class Claim(IntEnum):
    """How sure a framework is that a config or a command is its own; the highest claim wins."""

    NO = 0
    SHARED = 1  # it could be, but nothing in it belongs to this framework alone
    OWN = 2  # it has a mark that only this framework has


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How a framework's config is recognized, by keys; dots go into mappings.

    A config with one of the keys in `own` is claimed as OWN, one with a key in `shared` as SHARED,
    provided that it has every key in `needs` and none in `without`.
    """

    own: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def claim(self, document: Mapping[str, object]) -> Claim:
        """Return the claim on a parsed config."""
        stated = {
            key
            for key in self.own | self.shared | self.needs | self.without
            if _states(document, key)
        }
        if self.needs - stated or self.without & stated:
            return Claim.NO
        if self.own & stated:
            return Claim.OWN
        return Claim.SHARED if self.shared & stated else Claim.NO


def _states(document: Mapping[str, object], key: str) -> bool:
    here: object = document
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True


class Adapter(ABC):
    """One framework. A subclass states what differs from the defaults.

    `name` is what `--framework` takes; `title` how its users write it. `marks` recognizes its
    configs. `python_packages` are the packages whose modules only this framework starts
    (`python -m litgpt ...`), `programs` its own commands (`litgpt`). `is_run` says that the tests
    run its jobs; else it is read from its source alone. `divides` says that it trains with the
    Hugging Face Trainer, whose batches the monitor can divide. `model_key` is the setting that
    names the model. `takes_flat_files` says that a flat config becomes the flags of its script.
    """

    name: str
    title: str
    marks: Marks = Marks()
    python_packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    is_run: bool = True
    divides: bool = False
    model_key: str = "model_name_or_path"
    takes_flat_files: bool = False

    def recognizes(self, document: Mapping[str, object]) -> Claim:
        """Return the claim on a config document (parsed YAML or JSON, top level)."""
        return self.marks.claim(document)

    @abstractmethod
    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Return the claim on a command line."""

    @abstractmethod
    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the command that starts this config file without oomguard.

        `command` is the `oomguard: command:` of the file, empty if there is none.

        Raises:
            ConfigError: if the file leaves something open, for example which script to run.
        """

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the config file in a command line, as written there; None if it has none."""
        return None

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the files that `read` needs besides the config (absolute), such as DeepSpeed's.

        Called again with what was found until it names no other: a file may name a file.

        Raises:
            ConfigError: as `read` does.
        """
        return ()

    @abstractmethod
    def read(self, request: JobRequest) -> Job:
        """Read the job, with the framework's own defaults and command-line flags over the file.

        Raises:
            ConfigError: for a value of the wrong type, with file, line and key.
        """

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Add the choices that the framework couples to a change; `job.asked` stays as it is."""
        return plan

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return where the job puts its checkpoints; None if it cannot resume from them."""
        return None

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what of a checkpoint under `before` survives under `after`, and why not more."""
        return Mode.RESTART, f"{self.title} cannot resume"

    @abstractmethod
    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the command that runs `plan`; new files go into `folder` (absolute).

        Only settings in which `plan` differs from `job.asked` are edited, each where it wins
        (a flag on the command line, else the file); comments, order and other keys stay. `begins`
        names the checkpoint to resume from; without one the user's own settings apply.
        """

    @abstractmethod
    def as_trial(self, job: Job, folder: str) -> Job:
        """Return the job as a trial of a few steps: all it writes goes into `folder` (absolute).

        It saves no checkpoint, evaluates nothing, reports to no tracker and pushes to no hub; what
        decides the memory of a training step stays as it was.
        """

    def of_model(
        self, job: Job, model_type: str | None, stored_as: StoredFormat | None = None
    ) -> Job:
        """Return the job of a model of this type, without settings that have no effect on it.

        `stored_as` is the format of a checkpoint that is quantized already.
        """
        return replace(job, model_type=model_type, stored_as=stored_as)

    def seed(self, _job: Job) -> int | None:
        """Return the seed that the job states; None where it leaves it to the framework."""
        return None

    def data(self, job: Job) -> tuple[str, ...]:
        """Return the data sets that the job names: paths in its folder, which need not exist."""
        return self.memory_settings(job).data

    def notes(self, job: Job) -> tuple[str, ...]:
        """Return what a plan of the job assumes of it, one sentence each."""
        return ()

    def warnings(self, job: Job) -> tuple[str, ...]:
        """Return what of a job cannot be known or changed, one sentence each."""
        return ()

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the job's memory besides its plan; the default leaves it unknown."""
        return MemorySettings()

    def training_method(self, job: Job) -> TrainingMethod | None:
        """Return what the loss is computed from; None if that cannot be known."""
        return TrainingMethod.SFT

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return the settings whose effect on memory `memory_settings` and the plan leave out."""
        return ()

    def unknown(self, job: Job) -> tuple[str, ...]:
        """Return the keys of the config that the framework does not have."""
        return ()

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Return the framework's own message if it would refuse this plan, else None."""
        return None

    def alternatives(self, job: Job) -> tuple[Alternative, ...]:
        """Return the changes after which the framework accepts a job that it rejects."""
        return ()

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Return the packages that this plan needs and the requested one does not."""
        return frozenset()
