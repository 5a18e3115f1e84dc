"""torchtune: `tune run [TORCHRUN OPTIONS] RECIPE --config x.yaml [key=value ...]`.

Source: torchtune 0.6.1, _cli/run.py, recipes/.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.adapters import allocator_env, common, fields, launchers, trial
from oomguard.adapters.common import Refusal
from oomguard.adapters.contract import Adapter, Claim, JobRequest, Marks
from oomguard.adapters.fields import (
    Binding,
    Bindings,
    Edits,
    as_object,
    choice,
    direct,
    flag,
    number,
)
from oomguard.adapters.launchers import LauncherCommand
from oomguard.adapters.torchtune_memory import recipe_of
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags, Style
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Mode
from oomguard.job.command import Command
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import (
    LossKernel,
    Offload,
    Overlong,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job

_COMPONENT = fields.text("model._component_", "")
_QUANTIZE_BASE = flag("model.quantize_base")
_LOSS = fields.text("loss._component_", "")
_CHUNKED = "torchtune.modules.loss.CEWithChunkedOutputLoss"
_PLAIN = "torch.nn.CrossEntropyLoss"
_ACTIVATIONS, _CPU = flag("enable_activation_offloading"), flag("fsdp_cpu_offload")
_IN_BACKWARD = flag("optimizer_in_bwd")
_HOST = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})
_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def _quantization(settings: Settings) -> Quantization:
    """Tell by the builder: `qlora_...` keeps the base in torchao's NF4, constants quantized too."""
    quantized = _builder(settings).startswith("qlora_") or _QUANTIZE_BASE.of(settings)
    return Quantization.NF4_DOUBLE if quantized else Quantization.NONE


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    """Say `quantize_base`, which every LoRA builder has; few have a `qlora_` twin."""
    name = _builder(settings)
    bare = name.removeprefix("q") if name.startswith("qlora_") else name
    if value not in (Quantization.NONE, Quantization.NF4_DOUBLE) or not bare.startswith("lora_"):
        return None
    component = _COMPONENT.of(settings).removesuffix(name) + bare
    quantized = value is Quantization.NF4_DOUBLE
    return {as_object(_COMPONENT): component, as_object(_QUANTIZE_BASE): quantized}


def _builder(settings: Settings) -> str:
    return _COMPONENT.of(settings).rsplit(".", 1)[-1]


def _loss(settings: Settings) -> LossKernel:
    chunked = any(word in _LOSS.of(settings) for word in ("Chunked", "LinearCrossEntropy"))
    return LossKernel.FUSED if chunked else LossKernel.EAGER


def _offload(settings: Settings) -> frozenset[Offload]:
    found = _HOST if _CPU.of(settings) else frozenset[Offload]()
    return found | ({Offload.ACTIVATIONS} if _ACTIVATIONS.of(settings) else frozenset())


def _offload_edits(_: Settings, value: object) -> Edits | None:
    wanted = value if isinstance(value, frozenset) else frozenset()
    host = wanted - {Offload.ACTIVATIONS}
    if host not in (frozenset(), _HOST):
        return None
    return {as_object(_CPU): bool(host), as_object(_ACTIVATIONS): Offload.ACTIVATIONS in wanted}


KNOBS = Bindings(
    knobs=(
        direct("micro_batch", number("batch_size", 2)),
        direct("accumulation", number("gradient_accumulation_steps", 1)),
        direct("sequence_length", fields.maybe_number("tokenizer.max_seq_len")),
        fields.always("overlong", Overlong.CUT),
        direct("checkpointing", flag("enable_activation_checkpointing")),
        choice(
            "precision",
            fields.text("dtype", "bf16"),
            {"bf16": Precision.BF16_TRUE, "fp32": Precision.FP32, "fp16": Precision.FP16_TRUE},
        ),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        fields.stated("lora_rank", fields.maybe_number("model.lora_rank")),
        Binding(field="offload", read=_offload, edits=_offload_edits),
        fields.stated("optimizer", fields.text("optimizer._component_", "")),
        Binding(
            field="loss_kernel",
            read=_loss,
            edits=lambda _, value: {
                as_object(_LOSS): _CHUNKED if value is LossKernel.FUSED else _PLAIN
            },
        ),
    )
)
_REFUSALS = (
    Refusal(
        message="Gradient accumulation is not supported with optimizer in bwd.",
        when=lambda s, _, plan: plan.accumulation > 1 and _IN_BACKWARD.of(s),
    ),
    Refusal(
        message="enable_activation_offloading should only be True when "
        "enable_activation_checkpointing is True",
        when=lambda _, __, plan: (
            Offload.ACTIVATIONS in (plan.offload or ()) and not plan.checkpointing
        ),
    ),
    Refusal(
        message="enable_activation_offloading should only be True when training on CUDA",
        when=lambda _, job, plan: (
            Offload.ACTIVATIONS in (plan.offload or ()) and job.device is Device.CPU
        ),
    ),
    Refusal(
        message="fp16 precision is not supported in this recipe. Please use fp32 or bf16.",
        when=lambda _, __, plan: plan.precision is Precision.FP16_TRUE,
    ),
    Refusal(
        message="torchtune shares out with FSDP in its distributed recipes, and has no DeepSpeed.",
        when=lambda _, job, plan: plan.sharding is not job.asked.sharding,
    ),
    Refusal(
        message="fsdp_cpu_offload is there in distributed recipes alone.",
        when=lambda _, __, plan: (
            bool((plan.offload or frozenset()) & _HOST) and plan.sharding is not Sharding.FSDP
        ),
    ),
    Refusal(
        message="another recipe trains the whole model, or an adapter",
        when=lambda _, job, plan: plan.tuning is not job.asked.tuning,
    ),
)
#: Fields that the recipe decides, or the environment.
_ELSEWHERE = ("allocator",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invocation:
    """A command line taken apart: torchrun's launch of the recipe, whose words follow."""

    head: tuple[str, ...]
    launch: LauncherCommand

    @property
    def recipe(self) -> str:
        return posixpath.basename(self.launch.program).removesuffix(".py")

    @property
    def config(self) -> str | None:
        path = Flags(words=self.launch.words).get("config")
        return str(path) if path else None

    def settings(self, source: Source | None) -> Settings:
        words = Flags(words=self.launch.words, style=Style.OMEGACONF)
        return Settings(late=words, file=source.document if source else None)

    def argv(self, settings: Settings, config: str | None) -> tuple[str, ...]:
        words = Flags(words=settings.late.words)
        edited = words.set("config", config).words if config else words.words
        return (*self.head, *self.launch.head[1:], *edited)


def _split(argv: tuple[str, ...]) -> _Invocation | None:
    if len(argv) < 3 or posixpath.basename(argv[0]) != "tune" or argv[1] != "run":  # noqa: PLR2004
        return None
    launch = launchers.parse(("torchrun", *argv[2:]))
    return _Invocation(head=argv[:2], launch=launch) if launch else None


def _invocation(argv: tuple[str, ...], source: Source | None) -> _Invocation:
    found = _split(argv)
    if found is None or source is None:
        raise ConfigError(
            "torchtune trains from a recipe and a config file of yours",
            where=Where(key=" ".join(argv[:2])),
            next_step="Copy the config with tune cp NAME x.yaml, then tune run RECIPE "
            "--config x.yaml.",
        )
    return found


def _tuning(recipe: str) -> Tuning:
    kinds = {"lora_finetune": Tuning.LORA, "full_finetune": Tuning.FULL}
    return next((kind for name, kind in kinds.items() if recipe.startswith(name)), Tuning.OTHER)


#: Where torchtune writes; most configs say the others as `${output_dir}/...`.
_FOLDERS = ("output_dir", "checkpointer.output_dir", "metric_logger.log_dir")


class Torchtune(Adapter):
    """torchtune."""

    name = "torchtune"
    title = "torchtune"
    marks = Marks(own=frozenset({"model._component_"}))
    python_packages = ("torchtune",)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim `tune run`."""
        return Claim.OWN if _split(argv) else Claim.NO

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `tune run RECIPE --config FILE`; one device unless the command says more."""
        model = document.get("model")
        builder = str(model.get("_component_", "")) if isinstance(model, dict) else ""
        kind = "lora" if "lora_" in builder.rsplit(".", 1)[-1] else "full"
        recipe = f"{kind}_finetune_single_device"
        return (*(command or ("tune", "run", recipe)), "--config", source.path)

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the file after `--config`; a name of torchtune's own is none."""
        found = _split(argv)
        path = found.config if found else None
        return path if path and path.endswith((".yaml", ".yml")) else None

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        invocation = _invocation(request.argv, request.source)
        settings = invocation.settings(request.source)
        cpu = request.gpus == 0 or settings.get("device") == "cpu"
        distributed = invocation.recipe.endswith("_distributed")
        return Job(
            framework=self.name,
            argv=request.argv,
            cwd=request.cwd,
            config=request.source,
            asked=Plan(
                **KNOBS.read(settings),  # type: ignore[arg-type]  # each knob its field's type
                tuning=_tuning(invocation.recipe),
                sharding=Sharding.FSDP if distributed else Sharding.NONE,
                allocator=None if cpu else allocator_env.allocator_of(request.env),
            ),
            world=invocation.launch.world(request.gpus),
            device=Device.CPU if cpu else Device.CUDA,
            env=common.launch_env(request.env, _ENVIRONMENT),
            python=request.python,
            packages=request.packages,
            output_dir=_output(settings, request.cwd),
        )

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Add the checkpointing that torchtune requires with offloaded activations."""
        gained = Offload.ACTIVATIONS in (plan.offload or frozenset()) - (
            job.asked.offload or frozenset()
        )
        return replace(plan, checkpointing=True) if gained else plan

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return that nothing survives: a checkpoint names its epoch, and not its steps."""
        return Mode.RESTART, "torchtune saves only at the end of an epoch"

    def write(
        self,
        job: Job,
        plan: Plan,
        folder: str,
        begins: Continuation | None = None,
    ) -> Command:
        """Return the user's command with a copy of the config, edited where the plan differs."""
        invocation = _invocation(job.argv, job.config)
        settings = KNOBS.apply(invocation.settings(job.config), job, plan)
        copy = common.config_copy(settings, folder)
        config = copy[0].path if copy else None
        return Command(
            argv=invocation.argv(settings, config),
            cwd=job.cwd,
            env=common.attempt_env(job, plan),
            files=copy,
            config=config,
        )

    def as_trial(self, job: Job, folder: str) -> Job:
        """Return the job as one to try; checkpoints are written at the end of an epoch alone."""
        invocation = _invocation(job.argv, job.config)
        settings = invocation.settings(job.config).set(_FOLDERS[0], folder)
        settings = trial.stated(settings, dict.fromkeys(_FOLDERS, folder))
        return trial.with_settings(job, settings, invocation.argv(settings, None), folder)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what the settings say of memory beyond the plan."""
        return recipe_of(_invocation(job.argv, job.config).settings(job.config), job)

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Say torchtune's own message for a plan that it refuses."""
        settings = _invocation(job.argv, job.config).settings(job.config)
        return common.first_refusal(_REFUSALS, settings, job, plan) or KNOBS.unwritable(
            settings, job, plan, elsewhere=_ELSEWHERE
        )

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Name bitsandbytes where an optimizer of it is brought in."""
        wants = "bitsandbytes" in (plan.optimizer or "")
        has = "bitsandbytes" in (job.asked.optimizer or "")
        return frozenset({"bitsandbytes"}) if wants and not has else frozenset()


def _output(settings: Settings, cwd: str) -> str | None:
    value = settings.get("output_dir")
    return posixpath.join(cwd, value) if isinstance(value, str) else None
