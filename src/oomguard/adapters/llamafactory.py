"""LLaMA-Factory: `llamafactory-cli train x.yaml [key=value ...]`.

Source: llamafactory 0.9.5, launcher.py, hparams/, model/model_utils/quantization.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import fields, launchers, llamafactory_methods
from oomguard.adapters.config_adapter import (
    ConfigAdapter,
    allocator_of,
    not_training,
    with_allocator,
)
from oomguard.adapters.contract import Claim, JobRequest, Marks
from oomguard.adapters.hf import resuming
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.trainer_adapter import TrainerAdapter
from oomguard.adapters.invocation import CONFIG_SUFFIXES, Invocation, file_first
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.adapters.llamafactory_keys import (
    BINDINGS,
    LIGER_MODELS,
    REFUSALS,
    is_multimodal,
)
from oomguard.adapters.llamafactory_memory import LORA_RANK, memory_settings_of
from oomguard.adapters.settings.llamafactory_settings import LLAMAFACTORY
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags, Style
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Mode
from oomguard.job.command import File
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import ZERO, Allocator, Plan, Sharding
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import TrainingMethod, Unmodelled

_PROGRAMS = {"llamafactory-cli", "lmf"}
_ENVIRONMENT = (
    *("FORCE_TORCHRUN", "NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT"),
    *("RDZV_ID", "MIN_NNODES", "MAX_NNODES", "MAX_RESTARTS", "OPTIM_TORCH", "ALLOW_EXTRA_ARGS"),
    *("USE_RAY", "USE_KT", "USE_MCA", "USE_V1"),
)
#: Keys that belong to LLaMA-Factory. One of them may be the flag of any script, two are not;
#: finetuning_type is no other's.
_OWN_KEYS = frozenset({"finetuning_type", "stage", "cutoff_len", "dataset_dir", "template"})
_ENOUGH_KEYS = 2
#: The training script before version 0.8, and the cutoff_len that it had without one.
_OLD_SCRIPT, _OLD_LENGTH = "src/train_bash.py", 1024


def _started(argv: tuple[str, ...]) -> tuple[tuple[str, ...], LauncherCommand | None] | None:
    """Return the head of a training command, and its launcher unless LLaMA-Factory launches."""
    launch = launchers.parse(argv)
    if argv and posixpath.basename(argv[0]) in _PROGRAMS:
        head = argv[:1]
    elif launch is None:
        return None
    elif launch.is_module and launch.program in ("llamafactory.cli", "llamafactory"):
        head = launch.head
    else:
        return (launch.head, launch) if _is_its_script(launch) else None
    return ((*head, "train"), None) if argv[len(head) : len(head) + 1] == ("train",) else None


def _is_its_script(launch: LauncherCommand) -> bool:
    """Return whether a launcher starts LLaMA-Factory's training script, whatever it is called."""
    program = launch.program
    if program.endswith(("llamafactory/launcher.py", _OLD_SCRIPT)):
        return True
    if launch.is_module and program == "llamafactory.launcher":
        return True
    has_config = bool(launch.args) and launch.args[0].endswith(CONFIG_SUFFIXES)
    if has_config and program.endswith("src/train.py"):
        return True
    stated = _OWN_KEYS & set(Flags(args=launch.args).names())
    return "finetuning_type" in stated or len(stated) >= _ENOUGH_KEYS


def _can_distribute(invocation: Invocation) -> bool:
    return invocation.launch is None or invocation.launch.launcher is not Launcher.PYTHON


def _enabled(env: Mapping[str, str], name: str, default: str = "0") -> bool:
    return env.get(name, default).lower() in ("true", "y", "1")


def _starts_torchrun(env: Mapping[str, str], gpus: int) -> bool:
    if _enabled(env, "FORCE_TORCHRUN"):
        return True
    return gpus > 1 and not _enabled(env, "USE_RAY") and not _enabled(env, "USE_KT")


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"the environment variable {name} is {text!r}, not a number of at least 1",
            where=Where(key=name),
        )
    return int(text)


def _allocator(env: Mapping[str, str], *, torchrun: bool) -> Allocator:
    # The CLI's torchrun path overwrites what the user set, unless OPTIM_TORCH is off.
    if torchrun and _enabled(env, "OPTIM_TORCH", "1"):
        return Allocator.EXPANDABLE
    return allocator_of(env)


_ACCELERATES_OWN = (
    "accelerate's config decides over the sharding, and LLaMA-Factory's own would fight it"
)


#: Variables that start another trainer, which reads the same config with settings of its own
#: (cli.py, hparams/parser.py).
_OTHER_TRAINERS = {
    "USE_MCA": "LLaMA-Factory's trainer on Megatron Core (mcore_adapter)",
    "USE_V1": "LLaMA-Factory's v1 trainer",
}


def _check_trainer(env: Mapping[str, str]) -> None:
    """Raise for a variable that starts another trainer.

    Raises:
        ConfigError: with the variable and the trainer.
    """
    for name, trainer in _OTHER_TRAINERS.items():
        if _enabled(env, name):
            raise ConfigError(
                f"{name} starts {trainer}, which oomguard cannot read yet",
                where=Where(key=name),
                next_step=f"Unset {name} to train with LLaMA-Factory's own trainer.",
            )


#: Keys of configs that merge, chat with or evaluate a model.
_OTHER_USES = ("export_dir", "infer_backend", "do_predict", "do_eval", "task")


def _check_trains(settings: Settings) -> None:
    """Raise for a config that does not train.

    Raises:
        ConfigError: with the key that shows its use.
    """
    if fields.flag("do_train").of(settings) or settings.has("dataset"):
        return
    use = next((key for key in _OTHER_USES if settings.get(key)), None)
    if use is None:
        return
    raise not_training("no do_train and no dataset", settings.origin(use))


#: Keys of the configs of LLaMA-Factory's next major version.
_V1_KEYS = frozenset({"model_class", "peft_config", "dist_config", "kernel_config"})


class LlamaFactory(TrainerAdapter):
    """LLaMA-Factory."""

    name = "llamafactory"
    title = "LLaMA-Factory"
    marks = Marks(
        own=_OWN_KEYS,
        shared=frozenset({"model_name_or_path"}),
        without=frozenset({"model", "base_model", "train"}),
    )
    programs = ("llamafactory-cli",)
    python_packages = ("llamafactory",)
    bindings = BINDINGS
    refusals = REFUSALS
    groups = LLAMAFACTORY
    environment = _ENVIRONMENT
    rank = LORA_RANK
    fuses = LIGER_MODELS
    dequantizes = frozenset({"mxfp4", "fp8"})  # model/model_utils/quantization.py
    starts = (*programs, "train")
    usage = "Write llamafactory-cli train x.yaml."

    def recognizes(self, document: Mapping[str, object]) -> Claim:
        """Claim configs of the next major version too, to refuse them by name."""
        return Claim.OWN if _V1_KEYS & document.keys() else super().recognizes(document)

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `llamafactory-cli train FILE`.

        Raises:
            ConfigError: for the format of the next major version.
        """
        newer = next((key for key in document if key in _V1_KEYS), None)
        if newer is not None:
            raise ConfigError(
                "this config is in LLaMA-Factory's v1 format, which oomguard cannot read yet",
                where=Where(file=source.path, key=newer),
                next_step="Pass a config in the format of LLaMA-Factory 0.9.",
            )
        return super().command_for(source, document, command)

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line.

        Raises:
            ConfigError: for a JSON config, which LLaMA-Factory cannot read.
        """
        started = _started(argv)
        if started is None:
            return None
        head, launch = started
        args = argv[len(head) :]
        if args and not args[0].startswith("--") and not args[0].endswith(CONFIG_SUFFIXES):
            return None
        if source is not None and source.path.endswith(".json"):
            raise ConfigError(
                "LLaMA-Factory 0.9.5 fails on every JSON config ('PosixPath' object has no "
                "attribute 'read')",
                where=Where(file=source.path),
                next_step="Save it as .yaml: JSON is YAML, the text can stay.",
            )
        style = Style.OMEGACONF if source else Style.ARGPARSE
        return file_first(head, args, source, style=style, launch=launch)

    def invocation(self, argv: tuple[str, ...], source: Source | None) -> Invocation:
        """Return the parsed command line; no other script reads its keys."""
        return ConfigAdapter.invocation(self, argv, source)

    def training_method(self, job: Job) -> TrainingMethod:
        """Return the method of the stage; preference training has several losses."""
        return llamafactory_methods.method_of(self.of_job(job).settings)

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return what the settings say, and models beside the trained one."""
        settings = self.of_job(job).settings
        other = llamafactory_methods.other_models(settings, self.memory_settings(job))
        return (*super().unmodelled(job), *other)

    def read(self, request: JobRequest) -> Job:
        """Read the job.

        Raises:
            ConfigError: if the config does not train, another trainer reads it, or it has a value
                that LLaMA-Factory refuses.
        """
        _check_trainer(request.env)
        stated = self.invocation(request.argv, request.source).settings
        _check_trains(stated)
        llamafactory_methods.check_choices(stated)
        job = super().read(request)
        settings = self.of_job(job).settings
        return replace(
            job,
            multimodal=is_multimodal(settings),
            compares_samples=llamafactory_methods.compares_samples(settings),
        )

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the fields of the requested plan; its own torchrun sets the allocator."""
        fields = super().fields(invocation, request, world)
        is_old = invocation.launch is not None and invocation.launch.program.endswith(_OLD_SCRIPT)
        if is_old and fields["sequence_length"] and not invocation.settings.has("cutoff_len"):
            fields["sequence_length"] = _OLD_LENGTH
        if self.device(invocation.settings, request.gpus) is Device.CPU:
            return fields
        torchrun = invocation.launch is None and _starts_torchrun(request.env, request.gpus)
        return {**fields, "allocator": _allocator(request.env, torchrun=torchrun)}

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks the job has: its own torchrun starts one for each GPU."""
        if invocation.launch is not None:
            return invocation.launch.world(
                request.gpus, self.accelerate_config(invocation, request)
            )
        if not _starts_torchrun(request.env, request.gpus):
            return World()
        return World(
            nodes=_count(request.env, "NNODES", 1),
            per_node=_count(request.env, "NPROC_PER_NODE", max(1, request.gpus)),
        )

    def packs(self, settings: Settings) -> bool:
        """Return whether samples are packed."""
        return super().packs(settings) or settings.get("stage") == "pt"

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what of a checkpoint written under `before` survives under `after`."""
        reason = llamafactory_methods.cannot_resume(self.of_job(job).settings)
        return (Mode.RESTART, reason) if reason else super().resume_mode(job, before, after)

    def resumed(self, settings: Settings, job: Job, begins: Continuation | None) -> Settings:
        """Return the settings with the checkpoint to resume from."""
        return resuming.restarted(super().resumed(settings, job, begins), begins)

    def shard(
        self, invocation: Invocation, job: Job, plan: Plan, folder: str
    ) -> tuple[Invocation, tuple[File, ...]]:
        """Write a DeepSpeed file and name it in the settings."""
        settings, files = hf.with_zero_file(invocation.settings, job, plan, folder)
        return replace(invocation, settings=settings), files

    def refuses_sharding(self, invocation: Invocation, job: Job, plan: Plan) -> str | None:
        """Return why the plan's sharding or offload cannot be written, None if it can."""
        if hf.zero_as_asked(job, plan):
            return None
        if plan.sharding in ZERO and not _can_distribute(invocation):
            return "Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training."
        own = job.asked.sharding is Sharding.NONE or hf.DEEPSPEED.of(invocation.settings)
        return hf.refuses_sharding(job, plan) or (None if own else _ACCELERATES_OWN)

    def unbound(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the fields that no key has to hold; the rows follow from the vocabulary."""
        return (*super().unbound(job, plan), "embedding_rows")

    def env(self, job: Job, plan: Plan, begins: Continuation | None) -> dict[str, str]:
        """Return the environment of an attempt."""
        env = dict(job.env)
        if plan.allocator is job.asked.allocator and hf.zero_as_asked(job, plan):
            return env
        is_cli = self.of_job(job).launch is None
        asked_torchrun = job.world.size > 1 or _enabled(env, "FORCE_TORCHRUN")
        if (
            is_cli
            and plan.sharding in ZERO
            and not hf.zero_as_asked(job, plan)
            and not asked_torchrun
        ):
            env["FORCE_TORCHRUN"] = "1"
            if job.device is Device.CPU:
                env.setdefault("NPROC_PER_NODE", "1")  # it counts GPUs otherwise
        torchrun = is_cli and (asked_torchrun or _enabled(env, "FORCE_TORCHRUN"))
        if plan.allocator is None or plan.allocator is _allocator(env, torchrun=torchrun):
            return env
        if torchrun:
            env["OPTIM_TORCH"] = "0"
        return with_allocator(env, plan.allocator)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        settings = self.of_job(job).settings
        return llamafactory_methods.memory_settings(memory_settings_of(settings, job), settings)
