"""torchtune: `tune run [TORCHRUN OPTIONS] RECIPE --config x.yaml [key=value ...]`.

Source: torchtune 0.6.1, _cli/run.py, recipes/.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import fields, launchers, torchtune_methods, trial
from oomguard.adapters.config_adapter import ConfigAdapter, Refusal, not_training
from oomguard.adapters.contract import JobRequest, Marks
from oomguard.adapters.fields import (
    Binding,
    Bindings,
    Edits,
    choice,
    direct,
    flag,
    number,
)
from oomguard.adapters.invocation import Invocation, file_option
from oomguard.adapters.settings.torchtune_settings import TORCHTUNE
from oomguard.adapters.torchtune_memory import IN_BACKWARD, LORA_RANK, memory_settings_of
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Style
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Mode
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
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import TrainingMethod, Unmodelled

_COMPONENT = fields.text("model._component_", "")
_QUANTIZE_BASE = flag("model.quantize_base")
_LOSS = fields.text("loss._component_", "")
_CHUNKED = "torchtune.modules.loss.CEWithChunkedOutputLoss"
_PLAIN = "torch.nn.CrossEntropyLoss"
_ACTIVATIONS, _CPU = flag("enable_activation_offloading"), flag("fsdp_cpu_offload")
_HOST = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})
_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def _quantization(settings: Settings) -> Quantization:
    """Read it from the builder: `qlora_...` keeps the base in NF4 with quantized constants."""
    quantized = _builder(settings).startswith("qlora_") or _QUANTIZE_BASE.of(settings)
    return Quantization.NF4_DOUBLE if quantized else Quantization.NONE


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    """Write `quantize_base`, which every LoRA builder has; few have a `qlora_` variant."""
    name = _builder(settings)
    bare = name.removeprefix("q") if name.startswith("qlora_") else name
    if value not in (Quantization.NONE, Quantization.NF4_DOUBLE) or not bare.startswith("lora_"):
        return None
    component = _COMPONENT.of(settings).removesuffix(name) + bare
    quantized = value is Quantization.NF4_DOUBLE
    return {_COMPONENT: component, _QUANTIZE_BASE: quantized}


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
    return {_CPU: bool(host), _ACTIVATIONS: Offload.ACTIVATIONS in wanted}


_ACCUMULATION = number("gradient_accumulation_steps", 1)
BINDINGS = Bindings(
    bindings=(
        direct("micro_batch", number("batch_size", 2)),
        direct("accumulation", _ACCUMULATION),
        direct("sequence_length", fields.maybe_number("tokenizer.max_seq_len")),
        fields.always("overlong", Overlong.CUT),
        direct("checkpointing", flag("enable_activation_checkpointing")),
        choice(
            "precision",
            fields.text("dtype", "bf16"),
            {"bf16": Precision.BF16_TRUE, "fp32": Precision.FP32, "fp16": Precision.FP16_TRUE},
        ),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        fields.stated("lora_rank", LORA_RANK),
        Binding(field="offload", read=_offload, edits=_offload_edits),
        fields.stated("optimizer", fields.text("optimizer._component_", "")),
        Binding(
            field="loss_kernel",
            read=_loss,
            edits=lambda _, value: {_LOSS: _CHUNKED if value is LossKernel.FUSED else _PLAIN},
        ),
    )
)
_PPO_BATCH = number("ppo_batch_size", 1)
#: PPO's recipe divides `ppo_batch_size` by the accumulation; `batch_size` are its trajectories.
_PPO_BINDINGS = Bindings(
    bindings=(
        Binding(
            field="micro_batch",
            read=lambda s: max(1, _PPO_BATCH.of(s) // _ACCUMULATION.of(s)),
            edits=lambda _, __: {},
        ),
        *(one for one in BINDINGS.bindings if one.field != "micro_batch"),
    )
)
_REFUSALS = (
    Refusal(
        message="Gradient accumulation is not supported with optimizer in bwd.",
        when=lambda s, _, plan: plan.accumulation > 1 and IN_BACKWARD.of(s),
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


def _tuning(recipe: str, settings: Settings) -> Tuning:
    """Return what a recipe trains; distillation and QAT have one recipe for several."""
    if recipe.startswith(("lora_", "qat_lora_", "knowledge_distillation")):
        adapted = "lora_" in recipe or "lora_" in str(settings.get("model._component_"))
        return Tuning.LORA if adapted else Tuning.FULL
    trains_all = "full" in recipe or recipe == "qat_distributed"
    return Tuning.FULL if trains_all else Tuning.OTHER


def _component(document: Mapping[str, object], key: str) -> str:
    block = document.get(key)
    return str(block.get("_component_", "")) if isinstance(block, dict) else ""


#: Settings that only distributed recipes read (torchtune 0.6.1, recipes/*_distributed.py).
_DISTRIBUTED_KEYS = frozenset(
    {
        "fsdp_cpu_offload",
        "fsdp_reshard_after_forward",
        "custom_sharded_layers",
        "fsdp_sharding_strategy",
    }
    | {"tensor_parallel_dim", "tensor_parallel_plan", "data_parallel_shard_dim"}
    | {"data_parallel_replicate_dim", "context_parallel_dim"}
)
#: The command that torchtune's own configs state in a comment.
_STATED_RECIPE = re.compile(
    r"^#.*\btune run\b.*?\b(\w+_(?:distributed|single_device))\b", re.MULTILINE
)


def _is_distributed(source: Source, document: Mapping[str, object]) -> bool:
    """Return whether a config is for several GPUs: by its settings, else by its own comment."""
    stated = _STATED_RECIPE.search(source.text)
    by_comment = stated is not None and stated[1].endswith("_distributed")
    return by_comment or not _DISTRIBUTED_KEYS.isdisjoint(document)


def _recipe_for(source: Source, document: Mapping[str, object]) -> str:
    """Return the recipe that trains from a config (torchtune 0.6.1, _recipe_registry.py).

    Raises:
        ConfigError: for the config of an evaluation, a generation or a conversion.
    """
    use = next((key for key in ("tasks", "prompt", "quantizer") if key in document), None)
    if use is not None and "optimizer" not in document:
        raise not_training("no optimizer", Where(file=source.path, key=use))
    kind = "lora" if "lora_" in _component(document, "model").rsplit(".", 1)[-1] else "full"
    where = "distributed" if _is_distributed(source, document) else "single_device"
    if "quantizer" in document:  # fake quantization; only distributed recipes have it
        return "qat_lora_finetune_distributed" if kind == "lora" else "qat_distributed"
    if "teacher_model" in document:
        return f"knowledge_distillation_{where}"
    loss = _component(document, "loss").lower()
    if "dpo" in loss:
        return f"{kind}_dpo_" + (where if kind == "lora" else "distributed")
    return "ppo_full_finetune_single_device" if "ppo" in loss else f"{kind}_finetune_{where}"


def _recipe(invocation: Invocation) -> str:
    program = invocation.launch.program if invocation.launch else ""
    return posixpath.basename(program).removesuffix(".py")


#: Where torchtune writes; most configs write the others as `${output_dir}/...`.
_FOLDERS = ("output_dir", "checkpointer.output_dir", "metric_logger.log_dir")


class Torchtune(ConfigAdapter):
    """torchtune."""

    name = "torchtune"
    title = "torchtune"
    marks = Marks(own=frozenset({"model._component_"}))
    programs = ("tune",)
    model_key = _COMPONENT.name
    python_packages = ("torchtune",)
    bindings = BINDINGS
    refusals = _REFUSALS
    groups = TORCHTUNE
    environment = _ENVIRONMENT
    usage = "Copy the config with tune cp NAME x.yaml, then tune run RECIPE --config x.yaml."

    def known_to(self, job: Job) -> frozenset[str]:
        """Return nothing: a config has variables of its own, which others refer to."""
        return frozenset()

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse `tune run`: torchrun's options and the recipe, then the settings."""
        is_run = len(argv) > 1 and posixpath.basename(argv[0]) == "tune" and argv[1] == "run"
        launch = launchers.parse(("torchrun", *argv[2:])) if is_run else None
        if launch is None:
            return None
        head = (*argv[:2], *launch.head[1:])
        return file_option(head, launch.args, source, style=Style.OMEGACONF, launch=launch)

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `tune run RECIPE --config FILE`; a distributed recipe takes all GPUs.

        Raises:
            ConfigError: for the config of an evaluation.
        """
        if command:
            return (*command, "--config", source.path)
        recipe = _recipe_for(source, document)
        ranks = ("--nproc_per_node", "gpu") if recipe.endswith("_distributed") else ()
        return ("tune", "run", *ranks, recipe, "--config", source.path)

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the file after `--config`; None for the name of a config that torchtune ships."""
        path = super().config_path(argv)
        return path if path and path.endswith((".yaml", ".yml")) else None

    def invocation(self, argv: tuple[str, ...], source: Source | None) -> Invocation:
        """Return the parsed command line.

        Raises:
            ConfigError: if it does not train, or with a config that torchtune ships.
        """
        if source is None:
            raise ConfigError(
                "torchtune trains from a recipe and a config file",
                where=Where(key=" ".join(argv[:2])),
                next_step=self.usage,
            )
        return super().invocation(argv, source)

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the fields of the requested plan, some of them by the recipe's name."""
        recipe = _recipe(invocation)
        return {
            **super().fields(invocation, request, world),
            "tuning": _tuning(recipe, invocation.settings),
            "sharding": Sharding.FSDP if recipe.endswith("_distributed") else Sharding.NONE,
        }

    def training_method(self, job: Job) -> TrainingMethod | None:
        """Return the method that the recipe's name states."""
        return torchtune_methods.method_of(_recipe(self.of_job(job)))

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return what the settings say, and what the recipe does besides."""
        invocation = self.of_job(job)
        more = torchtune_methods.unmodelled(_recipe(invocation), invocation.settings)
        return (*super().unmodelled(job), *more)

    def bindings_of(self, invocation: Invocation) -> Bindings:
        """Return the bindings of the recipe."""
        is_ppo = torchtune_methods.method_of(_recipe(invocation)) is TrainingMethod.PPO
        return _PPO_BINDINGS if is_ppo else BINDINGS

    def device(self, settings: Settings, gpus: int) -> Device:
        """Return where the job computes."""
        return Device.CPU if gpus == 0 or settings.get("device") == "cpu" else Device.CUDA

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Add the checkpointing that torchtune requires with offloaded activations."""
        gained = Offload.ACTIVATIONS in (plan.offload or frozenset()) - (
            job.asked.offload or frozenset()
        )
        return replace(plan, checkpointing=True) if gained else plan

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return that nothing survives: a checkpoint names its epoch, and not its steps."""
        return Mode.RESTART, "torchtune saves only at the end of an epoch"

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Return the settings of a trial; checkpoints are written only at the end of an epoch."""
        return trial.stated(super().quiet(settings, folder), dict.fromkeys(_FOLDERS, folder))

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        invocation = self.of_job(job)
        found = memory_settings_of(invocation.settings, job)
        return torchtune_methods.memory_settings(found, _recipe(invocation), invocation.settings)

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Return bitsandbytes if the plan adds one of its optimizers."""
        needed = "bitsandbytes" in (plan.optimizer or "")
        has = "bitsandbytes" in (job.asked.optimizer or "")
        return frozenset({"bitsandbytes"}) if needed and not has else frozenset()
