"""axolotl: `axolotl train x.yaml [--key value ...] [-- LAUNCHER OPTIONS]`.

Source: axolotl 0.19.0, cli/main.py, cli/utils/train.py, utils/schemas/ (config, training, peft,
validation), utils/config/__init__.py, loaders/model.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import axolotl_methods, fields, launchers, trial
from oomguard.adapters.axolotl_cut_losses import CUT
from oomguard.adapters.axolotl_methods import ADAPTER
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.contract import JobRequest, Marks
from oomguard.adapters.data_names import in_entries, in_folder
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, flag, number
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.trainer_adapter import (
    FSDP_CONFIG,
    NO_ROWS,
    ZERO3_WITH_BATCH_SEARCH,
    TrainerAdapter,
)
from oomguard.adapters.invocation import Invocation, file_first
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.adapters.settings.axolotl_settings import (
    AXOLOTL,
    LORA_KERNELS,
    attention_named,
    dequantizes,
)
from oomguard.adapters.settings.fsdp_settings import checkpoints_layers
from oomguard.configfile import values
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.memory_settings import (
    ALL_LINEAR,
    Attention,
    FusedPart,
    LoraKernels,
    MemorySettings,
    TrainingCode,
)
from oomguard.job.plan import (
    ZERO,
    LossKernel,
    Offload,
    Overlong,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_MODULE = "axolotl.cli.train"
_MICRO, _STEPS = number("micro_batch_size", 1), number("gradient_accumulation_steps", 1)
_BATCH = fields.maybe_number("batch_size")  # of one rank: the older way to set the accumulation
_CHECKPOINTING: Key[object] = Key(
    name="gradient_checkpointing", decode=values.anything, default=False
)
_BF16: Key[object] = Key(name="bf16", decode=values.anything, default="auto")
_FULL = "full"
_LOAD_4BIT, _LOAD_8BIT = flag("load_in_4bit"), flag("load_in_8bit")
_OUTPUT = fields.text("output_dir", "./model-out")
_TARGET_LINEAR, _DORA = flag("lora_target_linear"), flag("peft_use_dora")
_CUTS = flag("cut_cross_entropy", default=True)
#: Plugins with a fused loss; that of cut cross entropy switches it on
#: (integrations/cut_cross_entropy/args.py).
_FUSED_LOSSES = {
    flag("liger_fused_linear_cross_entropy"): "liger",
    _CUTS: "cut_cross_entropy",
}
#: What axolotl computes in where no switch is on.
_UNSWITCHED = (Precision.FP32, Precision.FP16_TRUE)
_LORAS = ("lora", "qlora")
#: The kernels of layers, and what they compute of one.
_PARTS = {
    "lora_mlp_kernel": FusedPart.MLP,
    "lora_qkv_kernel": FusedPart.ATTENTION,
    "lora_o_kernel": FusedPart.OUTPUT,
}
_EXCESS = {"drop": Overlong.DROPPED, "truncate": Overlong.CUT}
_FOUR_BIT = Quantization.NF4_DOUBLE  # what axolotl asks of bitsandbytes


def _accumulation(settings: Settings) -> int:
    batch = _BATCH.of(settings)
    return max(1, batch // _MICRO.of(settings)) if batch else _STEPS.of(settings)


def _accumulation_edits(settings: Settings, value: object) -> Edits:
    if _BATCH.of(settings) and isinstance(value, int):
        return {_BATCH: value * _MICRO.of(settings)}
    return {_STEPS: value}


def _checkpoints(settings: Settings) -> bool:
    by_fsdp = checkpoints_layers(settings.get(FSDP_CONFIG)) and not hf.DEEPSPEED.of(settings)
    return by_fsdp or _CHECKPOINTING.of(settings) not in (None, False)


def _checkpointing_edits(settings: Settings, value: object) -> Edits | None:
    after = settings.set(_CHECKPOINTING.name, value)
    return {_CHECKPOINTING: value} if _checkpoints(after) is bool(value) else None


def _bf16(settings: Settings) -> object:
    """Return bf16 as axolotl resolves it: `full`, or whether it is on."""
    bf16 = settings.get(_BF16.name) if settings.has(_BF16.name) else _BF16.default
    by_default = bf16 == _BF16.default and not hf.FP16.of(settings)
    return bf16 if bf16 == _FULL else by_default or values.is_true(bf16)


def _switched(settings: Settings) -> Precision | None:
    """Return the 16 bits that a switch asks for; None if none is on."""
    if _bf16(settings) or settings.get("bfloat16"):
        return Precision.BF16_TRUE
    is_half = hf.FP16.of(settings) or settings.get("float16")
    return Precision.FP16_TRUE if is_half else None


def _precision(settings: Settings) -> Precision:
    """Return the format that the weights are loaded in, whatever computes beside them.

    Source: axolotl 0.19.0, utils/config/__init__.py (resolve_dtype).
    """
    return _switched(settings) or _unswitched(_quantization(settings))


def _unswitched(quantization: Quantization | None) -> Precision:
    """Return the format where no switch is on: beside weights in 8 bits it is fp16."""
    return Precision.FP16_TRUE if quantization is Quantization.INT8 else Precision.FP32


def _autocasts(settings: Settings) -> bool:
    """Return whether the Trainer autocasts: not for `bf16: full`, and not for `float16` alone.

    Source: axolotl 0.19.0, core/builders/base.py (_configure_precision_settings).
    """
    bf16 = _bf16(settings)
    asked = bf16 or settings.get("bfloat16") or hf.FP16.of(settings)
    return bf16 != _FULL and bool(asked)


def _precision_edits(settings: Settings, value: object) -> Edits | None:
    half = value is Precision.BF16_TRUE
    switched = _switched(settings.set(_BF16.name, half))
    spelled = switched is value or (switched is None and value in _UNSWITCHED)
    return {_BF16: half} if spelled else None


def _quantization(settings: Settings) -> Quantization | None:
    if settings.get("bnb_config_kwargs") or settings.get("gptq"):
        return None
    if _LOAD_4BIT.of(settings):
        return _FOUR_BIT
    return Quantization.INT8 if _LOAD_8BIT.of(settings) else Quantization.NONE


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    if value not in (Quantization.NONE, Quantization.INT8, _FOUR_BIT):
        return None
    bits: Edits = {
        _LOAD_4BIT: value is _FOUR_BIT,
        _LOAD_8BIT: value is Quantization.INT8,
    }
    if ADAPTER.of(settings) not in _LORAS:
        return bits
    return {ADAPTER: "qlora" if value is _FOUR_BIT else "lora", **bits}


def _tuning(settings: Settings) -> Tuning:
    adapter = ADAPTER.of(settings)
    if adapter is None:
        return Tuning.FULL
    return Tuning.LORA if adapter in _LORAS else Tuning.OTHER


def _fuses(settings: Settings, key: Key[bool]) -> bool:
    """Return whether a fused loss is on, which takes the plugin of its name too."""
    plugins = str(settings.get("plugins") or "").lower()
    return key.of(settings) and _FUSED_LOSSES[key] in plugins


def _loss_kernel(settings: Settings) -> LossKernel | None:
    """Return the fused loss, if one is on; other losses need the logits."""
    fused = any(_fuses(settings, key) for key in _FUSED_LOSSES)
    return LossKernel.FUSED if fused and not settings.get("rl") else None


def _is_reentrant(settings: Settings) -> bool:
    """Return whether checkpointing is reentrant: it is, where nothing that forbids it is stated.

    Source: axolotl 0.19.0, utils/config/__init__.py (normalize_config).
    """
    stated = hf.reentrant(settings)
    if stated is not None or settings.get("gradient_checkpointing_kwargs"):
        return bool(stated)
    return settings.get("unfrozen_parameters") is None and settings.get("rl") is None


def _raises_shards(settings: Settings) -> bool:
    """Return whether what FSDP shards is raised to fp32: by accelerate, in its first version.

    The second one is prepared by axolotl's own code, which raises nothing (0.19.0, monkeypatch/
    accelerate/fsdp2.py); without a version it is the first (utils/schemas/validation.py).
    """
    own = settings.get("fsdp_config")
    named = own if isinstance(own, dict) else {}
    version = settings.get("fsdp_version") or named.get("version") or named.get("fsdp_version")
    return str(version or 1) != "2"


def _kernels_on(settings: Settings, job: Job) -> tuple[str, ...]:
    """Return the LoRA kernels that are on; where none is named, axolotl switches all on.

    Source: axolotl 0.19.0, utils/schemas/config.py (check_auto_enable_lora_kernels).
    """
    if ADAPTER.of(settings) not in _LORAS or job.asked.quantization is Quantization.INT8:
        return ()
    if any(settings.get(key) is not None for key in LORA_KERNELS):
        return tuple(key for key in LORA_KERNELS if flag(key).of(settings))
    by_fsdp1 = job.world.size > 1 and settings.get("fsdp_config") and _raises_shards(settings)
    off = any(settings.get(key) for key in ("rl", "trust_remote_code", "nvfp4_merge_aware"))
    return () if off or by_fsdp1 else LORA_KERNELS


def _beside_kernels(settings: Settings, job: Job) -> str | None:
    """Return what of the job the effect of LoRA kernels is not modelled with; None for nothing."""
    beside = {
        "with DoRA": _DORA.of(settings),
        "in preference and RL training": settings.get("rl"),
        "on an embedding": "embed_tokens" in settings.words("lora_target_modules"),
        "over weights that are sharded": job.asked.sharding in (Sharding.FSDP, Sharding.ZERO3),
    }
    return next((text for text, holds in beside.items() if holds), None)


def _lora_kernels(settings: Settings, job: Job) -> LoraKernels | None:
    """Return the LoRA kernels as the estimate takes them.

    axolotl has them from 0.7 on, switches them on from 0.9.1 on, and runs them with dropout from
    0.16 on; their layers are PEFT's otherwise.
    Source: kernels/lora.py, monkeypatch/lora_kernels.py and the schemas of axolotl 0.7 to 0.19.
    """
    on = _kernels_on(settings, job)
    parts = frozenset(_PARTS[key] for key in on if key in _PARTS)
    if not parts or _beside_kernels(settings, job):
        return None
    stated = settings.get(on[0]) is not None
    dropout = fields.fraction("lora_dropout", 0.0).of(settings)
    first = (0, 16) if dropout else (0, 7) if stated else (0, 9, 1)
    return LoraKernels(parts=parts, since=("axolotl", first))


def _unmodelled_kernels(settings: Settings, job: Job) -> tuple[Unmodelled, ...]:
    """Return the LoRA kernels that are on in a job that their effect is not modelled for."""
    on, beside = _kernels_on(settings, job), _beside_kernels(settings, job)
    if not on or beside is None:
        return ()
    effect, line = f"LoRA kernels {beside} are not modelled", None
    if settings.get(on[0]) is None:
        effect += f"; axolotl switches them on, {on[0]}: false leaves all of them off"
    else:
        line = settings.origin(on[0]).line
    found = Unmodelled(key=on[0], effect=effect, direction=Direction.EITHER, line=line)
    return (found,)


#: The older switches of attention that have axolotl cast everything to 16 bits, and those in
#: transformers' words that do not (0.19.0, utils/schemas/enums.py).
_CASTING = ("xformers_attention", "sage_attention", "flex_attention", "flash_attention")
_NOT_CASTING = (None, "sdpa", "eager")
#: What axolotl raises, by parts of names (0.19.0, loaders/utils.py, get_linear_embedding_layers).
_RAISED = ("norm", "embed_tokens", "lm_head", "embed_in", "embed_out", "word_embeddings")


def _casts_back(settings: Settings) -> bool:
    """Return whether axolotl casts embeddings, head and norms back to 16 bits in full tuning.

    It raises them in every job without FSDP, and casts them back for adapters, attention that needs
    it, and cut cross entropy; DeepSpeed converts them all.
    Source: axolotl 0.19.0, loaders/model.py (_configure_embedding_dtypes).
    """
    older = any(map(settings.get, (*_CASTING, "gemma4_hybrid_attn_impl")))
    stated = settings.get("attn_implementation") not in _NOT_CASTING
    return stated or older or _fuses(settings, _CUTS)


def _raised(settings: Settings, job: Job) -> tuple[Unmodelled, ...]:
    """Return that what axolotl leaves in fp32 is counted in 16 bits, beside a reference."""
    key, asked = "attn_implementation", job.asked
    in_half = asked.tuning is Tuning.FULL and asked.precision is not Precision.FP32
    whole = asked.sharding not in (*ZERO, Sharding.FSDP)
    if not (settings.get("rl") and in_half and whole) or _casts_back(settings):
        return ()
    effect = (
        "without flash attention, full fine-tuning raises embeddings, head and norms to fp32: "
        "in preference and RL training they are counted in 16 bits"
    )
    line = settings.origin(key).line if settings.has(key) else None
    return (Unmodelled(key=key, effect=effect, direction=Direction.MORE, line=line),)


BINDINGS = Bindings(
    bindings=(
        fields.direct("micro_batch", _MICRO),
        Binding(field="accumulation", read=_accumulation, edits=_accumulation_edits),
        # Not stated, it follows the micro batch.
        fields.stated("eval_batch", fields.maybe_number("eval_batch_size")),
        fields.direct("sequence_length", number("sequence_len", 512)),
        fields.choice("overlong", fields.text("excess_length_strategy", "drop"), _EXCESS),
        Binding(field="checkpointing", read=_checkpoints, edits=_checkpointing_edits),
        Binding(field="precision", read=_precision, edits=_precision_edits),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        Binding(field="tuning", read=_tuning, edits=lambda _, __: None),
        Binding(field="loss_kernel", read=_loss_kernel, edits=lambda _, __: None),
        fields.stated("lora_rank", fields.maybe_number("lora_r")),
        fields.direct("optimizer", fields.text("optimizer", "adamw_torch_fused")),
        fields.stated(
            "loader_workers",
            Key(name="dataloader_num_workers", decode=values.natural, default=0),
        ),
        fields.stated("pin_memory", flag("dataloader_pin_memory")),
        fields.stated("low_cpu_mem_usage", flag("low_cpu_mem_usage")),
        fields.direct("auto_find_batch_size", flag("auto_find_batch_size")),
        *axolotl_methods.ENGINE.bindings,
    )
)
_REFUSALS = (
    Refusal(
        message="load_in_8bit and load_in_4bit are not supported without setting an adapter for "
        "training.",
        when=lambda _, __, plan: (
            plan.quantization in hf.ON_THE_FLY and plan.tuning is not Tuning.LORA
        ),
    ),
    Refusal(
        message="deepspeed not supported with ReLoRA",
        when=lambda s, _, plan: plan.sharding in ZERO and flag("relora").of(s),
    ),
    Refusal(
        message="Muon optimizer is currently incompatible with DeepSpeed",
        when=lambda _, __, plan: plan.sharding in ZERO and plan.optimizer == "muon",
    ),
    Refusal(
        message="micro_batch_size must be set to 1 when sample_packing is enabled with "
        "ring-attention",
        when=lambda s, _, plan: (
            plan.micro_batch > 1
            and flag("sample_packing").of(s)
            and fields.number("context_parallel_size", 1).of(s) > 1
        ),
    ),
    Refusal(
        message="excess_length_strategy: raise stops at a sample that is longer than sequence_len",
        when=lambda s, job, plan: (
            plan.sequence_length != job.asked.sequence_length
            and s.get("excess_length_strategy") == "raise"
        ),
    ),
    Refusal(
        message="Require cfg.load_in_4bit to be True for qlora",
        when=lambda s, job, plan: (
            s.get("adapter") == "qlora"
            and not _LOAD_4BIT.of(s)
            and plan.quantization is job.asked.quantization  # a change writes the adapter too
        ),
    ),
    NO_ROWS,
    ZERO3_WITH_BATCH_SEARCH,
)


#: What axolotl does besides training, and the values that switch it off.
_BESIDE: dict[str, object] = {
    **dict.fromkeys(("use_wandb", "use_mlflow", "use_comet", "use_trackio"), False),
    **dict.fromkeys(("wandb_project", "mlflow_tracking_uri", "hub_model_id"), None),
    **dict.fromkeys(("evals_per_epoch", "eval_steps", "saves_per_epoch", "save_steps"), None),
    **dict.fromkeys(("load_best_model_at_end", "auto_resume_from_checkpoints"), False),
    "eval_strategy": "no",
    "resume_from_checkpoint": None,
}


#: cli/main.py, the choices of --launcher.
_LAUNCHERS = ("accelerate", "torchrun", "python")


def _launch(argv: tuple[str, ...]) -> LauncherCommand | None:
    if len(argv) > 1 and posixpath.basename(argv[0]) == "axolotl" and argv[1] == "train":
        return LauncherCommand(
            launcher=Launcher.ACCELERATE,
            options={},
            program="train",
            is_module=False,
            head=argv[:2],
            args=argv[2:],
        )
    launch = launchers.parse(argv)
    return launch if launch and launch.is_module and launch.program == _MODULE else None


def _parted(launch: LauncherCommand) -> tuple[LauncherCommand, tuple[str, ...]]:
    """Separate axolotl's own arguments from those of the launcher that `--launcher` names.

    Raises:
        ConfigError: for a launcher that axolotl does not have.
    """
    end = launch.args.index("--") if "--" in launch.args else len(launch.args)
    args, tail = launch.args[:end], launch.args[end:]
    if launch.is_module:
        return replace(launch, args=args), tail
    name = str(Flags(args=args).get("launcher") or Launcher.ACCELERATE.value)
    if name not in _LAUNCHERS:
        raise ConfigError(
            f"axolotl has no launcher {name!r}",
            where=Where(key="--launcher"),
            next_step=f"Use one of {', '.join(_LAUNCHERS)}.",
        )
    start = ("accelerate", "launch") if name == Launcher.ACCELERATE.value else (name,)
    inner = launchers.parse((*start, *tail[1:], "train.py"))
    options = inner.options if inner else {}
    return replace(launch, launcher=Launcher(name), options=options, args=args), tail


class Axolotl(TrainerAdapter):
    """axolotl."""

    name = "axolotl"
    title = "axolotl"
    training_code = TrainingCode()
    marks = Marks(own=frozenset({"base_model"}), without=frozenset({"model_name_or_path"}))
    programs = ("axolotl",)
    model_key = "base_model"
    python_packages = ("axolotl",)
    starts = (*programs, "train")
    bindings = BINDINGS
    refusals = _REFUSALS
    groups = AXOLOTL
    output = _OUTPUT

    def training_method(self, job: Job) -> TrainingMethod | None:
        """Return the method that `rl` or a reward model names."""
        return axolotl_methods.method_of(self.of_job(job).settings)

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        job = super().read(request)
        settings = self.of_job(job).settings
        compares = axolotl_methods.compares_samples(settings)
        if axolotl_methods.method_of(settings) is not TrainingMethod.GRPO:
            job = replace(job, asked=replace(job.asked, engine_share=None, engine_sleeps=None))
        return replace(job, compares_samples=compares)

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set the precision that follows the quantization where no switch is on."""
        by_switch = _switched(self.of_job(job).settings) is plan.precision
        if by_switch or plan.precision not in _UNSWITCHED:
            return plan
        return replace(plan, precision=_unswitched(plan.quantization))

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return what the settings say, and the method besides."""
        settings = self.of_job(job).settings
        beside = (*_unmodelled_kernels(settings, job), *_raised(settings, job))
        return (*super().unmodelled(job), *axolotl_methods.unmodelled(settings), *beside)

    def of_model(
        self, job: Job, model_type: str | None, stored_as: StoredFormat | None = None
    ) -> Job:
        """Return the job of a model of this type; a checkpoint may be unpacked as it loads."""
        if stored_as and stored_as.method == "mxfp4" and dequantizes(self.of_job(job).settings):
            stored_as = None
        found, kernel = super().of_model(job, model_type, stored_as), job.asked.loss_kernel
        cuts = kernel is LossKernel.FUSED and _fuses(self.of_job(job).settings, _CUTS)
        if cuts and model_type in CUT:  # which knows more models than Liger does
            found = replace(found, asked=replace(found.asked, loss_kernel=kernel))
        return found

    def data(self, job: Job) -> tuple[str, ...]:
        """Return the training data sets, those of pretraining among them."""
        settings = self.of_job(job).settings
        keys = ("datasets", "pretraining_dataset")
        return in_folder((name for key in keys for name in in_entries(settings.get(key))), job.cwd)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what decides the memory; `lora_target_linear` adapts every linear layer."""
        found, settings = super().memory_settings(job), self.of_job(job).settings
        if found.lora is not None:
            targets = (ALL_LINEAR,) if _TARGET_LINEAR.of(settings) else found.lora.targets
            lora = replace(
                found.lora,
                dora=_DORA.of(settings),
                targets=targets,
                fused=_lora_kernels(settings, job),
            )
            found = replace(found, lora=lora)
        code = replace(found.code, reentrant_checkpointing=_is_reentrant(settings))
        attention = attention_named(settings.get("attn_implementation")) or Attention.SDPA
        found = replace(
            found,
            code=code,
            attention=attention,
            raises_shards=_raises_shards(settings),
            autocasts=_autocasts(settings),
            raised=() if settings.get("rl") or _casts_back(settings) else _RAISED,
        )
        return axolotl_methods.memory_settings(found, settings)

    def sharding(
        self, invocation: Invocation, request: JobRequest
    ) -> tuple[Sharding | None, frozenset[Offload] | None]:
        """Read sharding and offload; `fsdp_config` alone switches FSDP on as well."""
        settings = invocation.settings
        if settings.get("fsdp_config") and not hf.DEEPSPEED.of(settings):
            return Sharding.FSDP, frozenset()
        return super().sharding(invocation, request)

    def fsdp_configs(
        self, settings: Settings, request: JobRequest
    ) -> dict[str, Mapping[str, object] | None]:
        """Return FSDP's options, which switch it on by themselves."""
        own = settings.get(FSDP_CONFIG)
        return {FSDP_CONFIG: own} if isinstance(own, dict) else {}

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line; what follows `--` goes to the launcher."""
        found = _launch(argv)
        if found is None:
            return None
        launch, tail = _parted(found)
        return file_first(launch.head, launch.args, source, launch=launch, tail=tail)

    def edit(self, invocation: Invocation, job: Job, plan: Plan) -> Settings:
        """Write the plan's fields; a `batch_size` changes with either of its parts."""
        settings = super().edit(invocation, job, plan)
        if _BATCH.of(settings) is None or _accumulation(settings) == plan.accumulation:
            return settings
        return settings.set(_BATCH.name, plan.rank_batch)

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Switch trackers off by Axolotl's own keys."""
        settings = settings.set(self.output.name, folder).set("save_strategy", "no")
        settings = settings.set("max_steps", trial.MOST_STEPS)
        return trial.stated(settings, _BESIDE)

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, and accelerate's.

        Raises:
            ConfigError: for a command without a config.
        """
        if request.source is None:
            raise ConfigError(
                "axolotl trains from a config file",
                where=Where(key=" ".join(request.argv[:2])),
                next_step="Write axolotl train x.yaml.",
            )
        return super().referenced_files(request)
