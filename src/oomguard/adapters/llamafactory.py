"""LLaMA-Factory: `llamafactory-cli train x.yaml [key=value ...]`.

Source: llamafactory 0.9.5, launcher.py, hparams/, model/model_utils/quantization.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.adapters import allocator_env, common, launchers, trial
from oomguard.adapters.common import Refusal
from oomguard.adapters.contract import Adapter, Claim, JobRequest, Marks
from oomguard.adapters.hf import resuming
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.deepspeed import ZERO
from oomguard.adapters.invocation import with_config
from oomguard.adapters.llamafactory_keys import (
    KNOBS,
    LORA_RANK,
    REFUSALS,
    is_multimodal,
)
from oomguard.adapters.llamafactory_memory import recipe_of
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags, Style
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import Command
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Allocator, EmbeddingRows, Offload, Plan, Sharding, Tuning
from oomguard.job.training_job import Device, Job, World

_PROGRAMS = {"llamafactory-cli", "lmf"}
_ENVIRONMENT = (
    *("FORCE_TORCHRUN", "NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT"),
    *("RDZV_ID", "MIN_NNODES", "MAX_NNODES", "MAX_RESTARTS", "OPTIM_TORCH", "ALLOW_EXTRA_ARGS"),
    *("USE_RAY", "USE_KT", "USE_MCA", "USE_V1"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invocation:
    """A command line taken apart; `launch` is None where LLaMA-Factory's own CLI launches."""

    head: tuple[str, ...]
    config: str | None
    words: tuple[str, ...]
    launch: launchers.LauncherCommand | None

    @property
    def can_distribute(self) -> bool:
        return self.launch is None or self.launch.launcher is not launchers.Launcher.PYTHON

    def argv(self, config: str | None, words: tuple[str, ...]) -> tuple[str, ...]:
        return (*self.head, *((config,) if config else ()), *words)


def _split(argv: tuple[str, ...]) -> _Invocation | None:
    launch = launchers.parse(argv)
    if argv and posixpath.basename(argv[0]) in _PROGRAMS:
        head, words, launch = argv[:1], argv[1:], None
    elif launch is None:
        return None
    elif launch.is_module and launch.program in ("llamafactory.cli", "llamafactory"):
        head, words, launch = launch.head, launch.words, None
    elif launch.program.endswith(("src/train.py", "llamafactory/launcher.py")) or (
        launch.is_module and launch.program == "llamafactory.launcher"
    ):
        found = _with_config(launch.head, launch.words, launch)
        # Flags alone do not tell its src/train.py from anybody else's.
        return found if found and (found.config or "llamafactory" in launch.program) else None
    else:
        return None
    return _with_config((*head, "train"), words[1:], None) if words[:1] == ("train",) else None


def _with_config(
    head: tuple[str, ...], words: tuple[str, ...], launch: launchers.LauncherCommand | None
) -> _Invocation | None:
    first = words[0] if words else ""
    if first.endswith((".yaml", ".yml", ".json")):
        return _Invocation(head=head, config=first, words=words[1:], launch=launch)
    if first and not first.startswith("--"):
        return None
    return _Invocation(head=head, config=None, words=words, launch=launch)


def _invocation(argv: tuple[str, ...]) -> _Invocation:
    found = _split(argv)
    if found is None:
        raise ConfigError(
            "is no training command of LLaMA-Factory",
            where=Where(key=" ".join(argv[:2])),
            next_step="Write llamafactory-cli train x.yaml.",
        )
    return found


def _settings(argv: tuple[str, ...], source: Source | None) -> Settings:
    invocation = _invocation(argv)
    if source is None:
        return Settings(late=Flags(words=invocation.words))
    if source.path.endswith(".json"):
        raise ConfigError(
            "LLaMA-Factory 0.9.5 fails on every JSON config ('PosixPath' object has no attribute "
            "'read')",
            where=Where(file=source.path),
            next_step="Save it as .yaml: JSON is YAML, the text can stay.",
        )
    words = Flags(words=invocation.words, style=Style.OMEGACONF)
    return Settings(late=words, file=source.document)


def _enabled(env: Mapping[str, str], name: str, default: str = "0") -> bool:
    return env.get(name, default).lower() in ("true", "y", "1")


def _starts_torchrun(env: Mapping[str, str], gpus: int) -> bool:
    forced = _enabled(env, "FORCE_TORCHRUN") or _enabled(env, "USE_MCA")
    return forced or (gpus > 1 and not _enabled(env, "USE_RAY") and not _enabled(env, "USE_KT"))


def _world(request: JobRequest, invocation: _Invocation) -> World:
    if invocation.launch is not None:
        return common.launched_world(invocation.launch, request)
    if not _starts_torchrun(request.env, request.gpus):
        return World()
    return World(
        nodes=_count(request.env, "NNODES", 1),
        per_node=_count(request.env, "NPROC_PER_NODE", max(1, request.gpus)),
    )


def _sharding(
    settings: Settings, invocation: _Invocation, request: JobRequest
) -> tuple[Sharding | None, frozenset[Offload] | None]:
    launch = invocation.launch
    if launch is None or launch.launcher is not launchers.Launcher.ACCELERATE:
        return hf.sharding(settings, request.cwd, request.files)
    if hf.DEEPSPEED.of(settings):
        return hf.sharding(settings, request.cwd, request.files)
    return common.launch_sharding(launch, request, common.launch_text(launch, request))


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
    return allocator_env.allocator_of(env)


def _trained_embeddings(settings: Settings, job: Job) -> tuple[str, ...]:
    """Return the matrices over the vocabulary that are trained in full beside the adapter."""
    lora = recipe_of(settings, job).lora
    return lora.trained_embeddings if lora else ()


def _elsewhere(job: Job) -> tuple[str, ...]:
    # The rows follow from the vocabulary; the rank comes with LoRA.
    brought = () if job.asked.tuning is Tuning.LORA else ("lora_rank",)
    return (*hf.ELSEWHERE, "embedding_rows", *brought)


_NO_TORCHRUN = Refusal(
    message="Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training.",
    when=lambda _, job, plan: (
        plan.sharding in ZERO
        and not hf.zero_as_asked(job, plan)
        and not _invocation(job.argv).can_distribute
    ),
)
_ACCELERATES_OWN = Refusal(
    message="accelerate's config decides over the sharding, and LLaMA-Factory's own would fight it",
    when=lambda s, job, plan: (
        job.asked.sharding is not Sharding.NONE
        and not hf.DEEPSPEED.of(s)
        and not hf.zero_as_asked(job, plan)
    ),
)
_LAUNCHED = (_NO_TORCHRUN, _ACCELERATES_OWN)


class LlamaFactory(Adapter):
    """LLaMA-Factory."""

    name = "llamafactory"
    title = "LLaMA-Factory"
    marks = Marks(
        own=frozenset({"finetuning_type", "stage", "cutoff_len", "dataset_dir", "template"}),
        shared=frozenset({"model_name_or_path"}),
        without=frozenset({"model", "base_model", "train"}),
    )
    python_packages = ("llamafactory",)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim `llamafactory-cli train`, `lmf train`, and their Python spellings."""
        return Claim.OWN if _split(argv) else Claim.NO

    def command_for(
        self,
        source: Source,
        document: Mapping[str, object],
        command: tuple[str, ...],
    ) -> tuple[str, ...]:
        """Return `llamafactory-cli train FILE`."""
        return with_config(command or ("llamafactory-cli", "train"), source.path)

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the first word after `train`, if it is a file."""
        invocation = _split(argv)
        return invocation.config if invocation else None

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, and accelerate's."""
        launch = _invocation(request.argv).launch
        files = (
            hf.deepspeed_path(_settings(request.argv, request.source), request.cwd),
            common.launch_config(launch, request),
            common.launch_zero(launch, request, common.launch_text(launch, request)),
        )
        return tuple(path for path in files if path)

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        settings = _settings(request.argv, request.source)
        device = hf.device(settings, request.gpus)
        invocation = _invocation(request.argv)
        sharding, offload = _sharding(settings, invocation, request)
        torchrun = invocation.launch is None and _starts_torchrun(request.env, request.gpus)
        fields = KNOBS.read(settings)
        path = hf.deepspeed_path(settings, request.cwd)
        own = hf.zero_optimizer(settings, request.files.get(path) if path else None)
        fields["optimizer"] = own or fields["optimizer"]
        plan = Plan(
            **fields,  # type: ignore[arg-type]  # each knob reads its field's type
            sharding=sharding,
            offload=offload,
            allocator=None if device is Device.CPU else _allocator(request.env, torchrun=torchrun),
        )
        job = Job(
            framework=self.name,
            argv=request.argv,
            cwd=request.cwd,
            config=request.source,
            asked=plan,
            world=_world(request, invocation),
            device=device,
            env=common.launch_env(request.env, _ENVIRONMENT),
            python=request.python,
            packages=request.packages,
            multimodal=is_multimodal(settings),
            output_dir=posixpath.join(request.cwd, hf.OUTPUT_DIR.of(settings)),
            files=dict(request.files),
        )
        names = _trained_embeddings(settings, job)
        rows = EmbeddingRows.ALL if names else None
        return replace(job, asked=replace(plan, embedding_rows=rows), trained_embeddings=names)

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Add what LLaMA-Factory sets for a job that becomes LoRA."""
        if plan.tuning is not Tuning.LORA or job.asked.tuning is Tuning.LORA:
            return plan
        settings = _settings(job.argv, job.config)
        changed = replace(job, asked=plan)
        rows = EmbeddingRows.ALL if _trained_embeddings(settings, changed) else None
        return replace(plan, lora_rank=LORA_RANK.of(settings), embedding_rows=rows)

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the Trainer's checkpoints."""
        return resuming.layout(job, _settings(job.argv, job.config))

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives; a packed data set depends on the sequence length."""
        settings = _settings(job.argv, job.config)
        packs = bool(settings.get("packing")) or settings.get("stage") == "pt"
        return resuming.resume_mode(settings, before, after, packs=packs)

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the user's command with a copy of the config, edited where the plan differs."""
        invocation = _invocation(job.argv)
        settings = KNOBS.apply(_settings(job.argv, job.config), job, plan)
        settings = resuming.restarted(resuming.resumed(settings, begins), begins)
        settings = resuming.saving(settings, job)
        settings, files = hf.with_zero_file(settings, job, plan, folder)
        copy = common.config_copy(settings, folder)
        config = copy[0].path if copy else None
        return Command(
            argv=invocation.argv(config, settings.late.words),
            cwd=job.cwd,
            env=self._env(job, plan),
            files=(*files, *copy),
            config=config,
        )

    def as_trial(self, job: Job, folder: str) -> Job:
        """Return the job as one to try."""
        invocation = _invocation(job.argv)
        settings = trial.trainer(_settings(job.argv, job.config), folder)
        argv = invocation.argv(invocation.config, settings.late.words)
        return trial.with_settings(job, settings, argv, folder)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what the settings say of memory beyond the plan."""
        return recipe_of(_settings(job.argv, job.config), job)

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Say LLaMA-Factory's own message for a plan that it refuses."""
        settings = _settings(job.argv, job.config)
        return (
            KNOBS.unwritable(settings, job, plan, elsewhere=_elsewhere(job))
            or hf.refuses_sharding(job, plan)
            or common.first_refusal((*REFUSALS, *_LAUNCHED), settings, job, plan)
        )

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Name deepspeed, bitsandbytes and liger_kernel where the plan brings them in."""
        return hf.packages(plan) - hf.packages(job.asked)

    def _env(self, job: Job, plan: Plan) -> dict[str, str]:
        env = dict(job.env)
        if plan.allocator is job.asked.allocator and hf.zero_as_asked(job, plan):
            return env
        is_cli = _invocation(job.argv).launch is None
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
        return allocator_env.with_allocator(env, plan.allocator)
