"""ms-swift: `swift sft|pt|rlhf x.yaml [--key value ...]`.

Source: ms-swift 4.6.0, cli/main.py, arguments/ (sft_args, tuner_args, base_args/), trainers/
arguments.py, config/.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import (
    fields,
    launchers,
    ms_swift_generation,
    ms_swift_methods,
    trl_generation,
)
from oomguard.adapters.config_adapter import Refusal, not_training
from oomguard.adapters.contract import JobRequest, Marks
from oomguard.adapters.data_names import in_folder, of_swift
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, flag, number
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.liger import NOT_FUSED
from oomguard.adapters.hf.trainer_adapter import (
    ENVIRONMENT,
    FSDP_CONFIG,
    NO_ROWS,
    QUANTIZED_ALONE,
    ZERO3_WITH_BATCH_SEARCH,
    TrainerAdapter,
)
from oomguard.adapters.invocation import Invocation, file_first
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.adapters.llamafactory_keys import MULTIMODAL_MODEL
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.settings.swift_settings import (
    ATTENTIONS,
    CHECKPOINTING,
    EVAL_BATCH,
    FORMER,
    FREEZES_TOWER,
    MICRO_BATCH,
    SWIFT,
    SWIFT_RLHF,
)
from oomguard.configfile import values
from oomguard.configfile.document import Source
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import File
from oomguard.job.memory_settings import (
    ALL_LINEAR,
    Attention,
    Format,
    MemorySettings,
    TrainingCode,
)
from oomguard.job.plan import (
    ZERO,
    DeviceMap,
    Offload,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import TrainingMethod, Unmodelled

_PROGRAM = "swift"
_COMMANDS = (ms_swift_methods.SFT, ms_swift_methods.PT, ms_swift_methods.RLHF)
_MODULES = {f"swift.cli.{name}" for name in _COMMANDS}
_LAUNCHED_BY = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_STEPS = fields.maybe_number("gradient_accumulation_steps")
_MODEL = fields.maybe_text("model")
# Without one, weights keep the checkpoint's dtype, 16 bits in what people fine-tune, or become bf16
# (swift/model/utils.py, get_default_torch_dtype).
_DTYPE = fields.text("torch_dtype", "bfloat16")
_BF16: Key[bool | None] = Key(name="bf16", decode=values.truth, default=None)
_FP16: Key[bool | None] = Key(name="fp16", decode=values.truth, default=None)
_BITS, _METHOD = fields.maybe_number("quant_bits"), fields.maybe_text("quant_method")
_KIND = fields.text("bnb_4bit_quant_type", "nf4")
_DOUBLE = flag("bnb_4bit_use_double_quant", default=True)
_TYPE = fields.text("tuner_type", "lora", former=tuple(FORMER))
_RANK = number("lora_rank", 8)
_PARTS = {
    Part.VISION_TOWER: FREEZES_TOWER,
    Part.PROJECTOR: flag("freeze_aligner", default=True),
    Part.LANGUAGE_MODEL: flag("freeze_llm"),
}
_OUTPUT = fields.text("output_dir", "output")
_FOUR, _EIGHT = 4, 8
#: Settings of `swift sample` alone (swift/arguments/sampling_args.py).
_SAMPLING = ("sampler_type", "sampler_engine", "num_sampling_batch_size")
_TRUNCATION = fields.text("truncation_strategy", "delete")
_OVERLONG = {
    "delete": Overlong.DROPPED,
    "left": Overlong.CUT,
    "right": Overlong.CUT,
    "split": Overlong.CHUNKED,
}
_MAP: Key[object] = Key(name="device_map", decode=values.anything, default=None)
_BOTH = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})
#: The DeepSpeed configs that come with ms-swift; every batch in them is "auto".
_ZERO_NAMES = {
    "zero0": (Sharding.NONE, frozenset[Offload]()),
    "zero1": (Sharding.ZERO1, frozenset[Offload]()),
    "zero2": (Sharding.ZERO2, frozenset[Offload]()),
    "zero3": (Sharding.ZERO3, frozenset[Offload]()),
    "zero2_offload": (Sharding.ZERO2, frozenset({Offload.OPTIMIZER})),
    "zero3_offload": (Sharding.ZERO3, _BOTH),
}

_FSDP2 = "fsdp2"  # its own FSDP config, which checkpoints layers (config/fsdp2.json)


def _is_multimodal(settings: Settings) -> bool:
    stated = any(settings.has(key) for key in ("max_pixels", "vit_gradient_checkpointing"))
    return stated or bool(MULTIMODAL_MODEL.search(_MODEL.of(settings) or ""))


def _names_targets(settings: Settings) -> bool:
    """Return whether LoRA goes to modules of given names, in frozen parts too (pipelines/train)."""
    stated = settings.get("target_modules")
    return _TYPE.of(settings) == "lora" and bool(stated) and ALL_LINEAR not in str(stated)


def _frozen(settings: Settings) -> frozenset[Part] | None:
    if not _is_multimodal(settings) or _names_targets(settings):
        return None
    return frozenset(part for part, key in _PARTS.items() if key.of(settings))


def _frozen_edits(_: Settings, value: object) -> Edits:
    wanted = value if isinstance(value, frozenset) else frozenset()
    return {key: part in wanted for part, key in _PARTS.items()}


def _quantization(settings: Settings) -> Quantization | None:
    if _METHOD.of(settings) is None:
        return Quantization.NONE
    if _METHOD.of(settings) != "bnb":
        return None
    four = hf.four_bit(_KIND.of(settings), _DOUBLE.of(settings))
    return {_EIGHT: Quantization.INT8, _FOUR: four}.get(_BITS.of(settings) or 0)


def _quantization_edits(_: Settings, value: object) -> Edits | None:
    if value is Quantization.NONE:
        return {_METHOD: None, _BITS: None}
    if value is Quantization.INT8:
        return {_METHOD: "bnb", _BITS: _EIGHT}
    four = hf.spell_four_bit(value)
    if four is None:
        return None
    bits: Edits = {_METHOD: "bnb", _BITS: _FOUR}
    return {**bits, _KIND: four[0], _DOUBLE: four[1]}


def _precision(settings: Settings) -> Precision | None:
    """Return what autocast computes in, which follows the weights (base_args/model_args.py).

    Weights in fp32 are computed with in fp16; what is stated goes before either.
    """
    dtype = _DTYPE.of(settings).removeprefix("torch.")
    fp16, bf16 = _FP16.of(settings), _BF16.of(settings)
    if bf16 or (bf16 is None and dtype == "bfloat16" and not fp16):
        return Precision.BF16_MIXED
    if fp16 or (fp16 is None and dtype != "bfloat16"):
        return Precision.FP16_MIXED
    return Precision.FP32 if dtype == "float32" else None


def _precision_edits(_: Settings, value: object) -> Edits | None:
    if value is Precision.FP32:
        return {_DTYPE: "float32", _FP16: False, _BF16: False}
    if value not in (Precision.BF16_MIXED, Precision.FP16_MIXED):
        return None
    return {_FP16: value is Precision.FP16_MIXED, _BF16: value is Precision.BF16_MIXED}


def _tuning(settings: Settings) -> Tuning:
    return {"lora": Tuning.LORA, "full": Tuning.FULL}.get(_TYPE.of(settings), Tuning.OTHER)


def _tuning_edits(_: Settings, value: object) -> Edits | None:
    names = {Tuning.LORA: "lora", Tuning.FULL: "full"}
    return {_TYPE: names[value]} if isinstance(value, Tuning) and value in names else None


def _overlong(settings: Settings) -> Overlong | None:
    return _OVERLONG.get(_TRUNCATION.of(settings))


def _overlong_edits(_: Settings, value: object) -> Edits | None:
    args = {Overlong.CHUNKED: "split", Overlong.DROPPED: "delete"}
    if not isinstance(value, Overlong) or value not in args:
        return None
    return {_TRUNCATION: args[value]}


def _device_map(settings: Settings) -> DeviceMap:
    stated = _MAP.of(settings)
    if stated == "cpu":
        return DeviceMap.HOST
    # Without one each rank takes its own device; to the devices of a mapping it adds its number.
    named = isinstance(stated, str) and not stated.lstrip().startswith("{")
    return DeviceMap.SHARED if named else DeviceMap.OWN


def _device_map_edits(_: Settings, value: object) -> Edits | None:
    return {_MAP: None} if value is DeviceMap.OWN else None


_OWN = {"micro_batch", "accumulation", "eval_batch"}
BINDINGS = Bindings(
    bindings=(
        fields.direct("micro_batch", MICRO_BATCH),
        Binding(
            field="accumulation",
            read=_STEPS.of,
            edits=lambda _, value: {_STEPS: value},
        ),
        fields.direct("eval_batch", EVAL_BATCH),
        *(binding for binding in hf.SHARED if binding.field not in _OWN),
        fields.direct("sequence_length", fields.maybe_number("max_length")),
        Binding(field="overlong", read=_overlong, edits=_overlong_edits),
        Binding(field="device_map", read=_device_map, edits=_device_map_edits),
        fields.stated("image_pixels", fields.maybe_number("max_pixels")),
        fields.direct("checkpointing", CHECKPOINTING),
        fields.stated("preprocess_workers", fields.maybe_number("dataset_num_proc")),
        Binding(field="precision", read=_precision, edits=_precision_edits),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        Binding(field="tuning", read=_tuning, edits=_tuning_edits),
        Binding(
            field="lora_rank",
            read=lambda settings: _RANK.of(settings) if _TYPE.of(settings) == "lora" else None,
            edits=lambda _, value: {_RANK: value} if value is not None else {},
        ),
        Binding(field="frozen", read=_frozen, edits=_frozen_edits),
        hf.loss_kernel("use_liger_kernel"),
        trl_generation.COMPLETION_LENGTH,
        *ms_swift_generation.ENGINE.bindings,
    )
)


def _launch(argv: tuple[str, ...]) -> LauncherCommand | None:
    if len(argv) > 1 and posixpath.basename(argv[0]) == _PROGRAM and argv[1] in _COMMANDS:
        return LauncherCommand(
            launcher=Launcher.PYTHON,
            options={},
            program=argv[1],
            is_module=False,
            head=argv[:2],
            args=argv[2:],
        )
    launch = launchers.parse(argv)
    if launch is None:
        return None
    # The module, or its file in a checkout: swift/cli/sft.py.
    path = launch.program if launch.is_module else launch.program.removesuffix(".py")
    name = ".".join(path.replace("/", ".").split(".")[-3:])
    if name in _MODULES:
        return launch
    # The program's file, or what it calls: python .../bin/swift sft.
    is_program = name == f"{_PROGRAM}.cli.main" or posixpath.basename(path) == _PROGRAM
    command = launch.args[:1]
    if not is_program or command[:1] == () or command[0] not in _COMMANDS:
        return None
    return replace(launch, program=command[0], head=(*launch.head, *command), args=launch.args[1:])


def _is_cli(launch: LauncherCommand) -> bool:
    """Return whether swift starts the ranks, by the variables that it reads."""
    return launch.program in _COMMANDS and launch.launcher is Launcher.PYTHON


def _command(argv: tuple[str, ...]) -> str:
    """Return which of its commands an argv starts: sft for a script of another name."""
    launch = _launch(argv)
    if launch is None:
        return ms_swift_methods.SFT
    return posixpath.basename(launch.program).removesuffix(".py").rpartition(".")[2]


def _zero_name(plan: Plan) -> str | None:
    wanted = (plan.sharding, plan.offload)
    return next((name for name, zero in _ZERO_NAMES.items() if zero == wanted), None)


_SPLIT = Refusal(
    message="`--truncation_strategy split` is currently only supported for pre-training.",
    when=lambda s, job, plan: (
        plan.overlong is Overlong.CHUNKED
        and (
            _command(job.argv) != ms_swift_methods.PT
            or flag("use_chat_template").of(s)
            or job.multimodal
        )
    ),
)


#: Settings of version 2 that say what is trained -> what later versions call them.
_VERSION_2 = {
    "sft_type": _TYPE.name,
    "model_id_or_path": _MODEL.name,
    "lora_target_modules": "target_modules",
    "quantization_bit": _BITS.name,
    "batch_size": MICRO_BATCH.name,
}


def _check_version(settings: Settings) -> None:
    """Raise for the settings of version 2, whose other defaults are not known here.

    Raises:
        ConfigError: with the first of them, and their later names.
    """
    found = [name for name in _VERSION_2 if settings.has(name)]
    if not found:
        return
    later = ", ".join(f"{name}: {_VERSION_2[name]}" for name in found)
    raise ConfigError(
        f"{found[0]} is a setting of ms-swift 2, which oomguard cannot read",
        where=settings.origin(found[0]),
        next_step=f"Use the names of ms-swift 3 and later ({later}).",
    )


class MsSwift(TrainerAdapter):
    """ms-swift."""

    name = "ms_swift"
    title = "ms-swift"
    training_code = TrainingCode()
    fsdp_files = (hf.FSDP.name,)
    marks = Marks(
        own=frozenset({"dataset", "tuner_type", "train_type", "model_type"})
        | {"quant_bits", "freeze_vit"},
        needs=frozenset({"model"}),
        without=frozenset({"base_model", "model._component_"}),
    )
    programs = (_PROGRAM,)
    python_packages = (_PROGRAM,)
    model_key = _MODEL.name
    starts = (*programs, "sft")
    bindings = BINDINGS
    refusals = (
        *(QUANTIZED_ALONE, _SPLIT, NO_ROWS, ZERO3_WITH_BATCH_SEARCH, hf.NO_METRIC, NOT_FUSED),
        *trl_generation.WHOLE_GROUPS,
    )
    environment = (*ENVIRONMENT, *_LAUNCHED_BY)
    output = _OUTPUT
    rank = _RANK

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the file's own command; a file that states `rlhf_type` is for `swift rlhf`.

        Raises:
            ConfigError: for a config of `swift sample`, which generates and does not train.
        """
        sampling = next((key for key in _SAMPLING if key in document), None)
        if sampling is not None:
            raise not_training("settings of swift sample", Where(file=source.path, key=sampling))
        if command or ms_swift_methods.TYPE.name not in document:
            return super().command_for(source, document, command)
        return (*self.programs, ms_swift_methods.RLHF, source.path)

    def training_method(self, job: Job) -> TrainingMethod | None:
        """Return the method of the command, of `rlhf_type` and of `task_type`."""
        return ms_swift_methods.method_of(_command(job.argv), self.of_job(job).settings)

    def groups_of(self, job: Job) -> SettingGroups:
        """Return the settings of the command."""
        return SWIFT_RLHF if _command(job.argv) == ms_swift_methods.RLHF else SWIFT

    def tables(self) -> Mapping[str, SettingGroups]:
        """Return the settings of each command."""
        return {"ms-swift: swift sft, swift pt": SWIFT, "ms-swift: swift rlhf": SWIFT_RLHF}

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return what the settings say, and what the command does besides."""
        more = ms_swift_methods.unmodelled(
            _command(job.argv), self.of_job(job).settings, self.memory_settings(job)
        )
        settings = self.of_job(job).settings
        generated = ms_swift_generation.unmodelled(job, settings) if job.group else ()
        return (*super().unmodelled(job), *more, *generated)

    def unbound(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the fields that no single key holds."""
        return (*super().unbound(job, plan), "generation_batch")

    def data(self, job: Job) -> tuple[str, ...]:
        """Return the training data sets."""
        return in_folder(of_swift(self.of_job(job).settings.words("dataset")), job.cwd)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what decides the memory; LoRA goes to all linear layers unless a setting says."""
        found, settings = super().memory_settings(job), self.of_job(job).settings
        if found.lora is not None:
            dropout = fields.fraction("lora_dropout", 0.05).of(settings)
            targets = found.lora.targets or (ALL_LINEAR,)
            found = replace(found, lora=replace(found.lora, targets=targets, dropout=dropout))
        attention = ATTENTIONS.get(str(settings.get("attn_impl")), Attention.SDPA)
        found = replace(found, base=found.base or Format.BF16, attention=attention)
        return ms_swift_methods.memory_settings(found, _command(job.argv), settings)

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line."""
        launch = _launch(argv)
        if launch is None:
            return None
        return file_first(launch.head, launch.args, source, launch=launch)

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, unless it is one of ms-swift's own."""
        settings = self.invocation(request.argv, request.source).settings
        return () if settings.get("deepspeed") in _ZERO_NAMES else super().referenced_files(request)

    def read(self, request: JobRequest) -> Job:
        """Read the job; without a number, ms-swift accumulates to 16 samples.

        Raises:
            ConfigError: for the settings of version 2.
        """
        settings = self.invocation(request.argv, request.source).settings
        _check_version(settings)
        world = self._world(request)
        micro = MICRO_BATCH.of(settings)
        command = _command(request.argv)
        default = ms_swift_methods.default_accumulation(command, settings, micro * world.size)
        steps = _STEPS.of(settings) or default
        job = super().read(request)
        asked = replace(job.asked, accumulation=steps)
        if command == ms_swift_methods.RLHF:  # whose losses Liger does not fuse
            asked = replace(asked, loss_kernel=None)
        generates = (
            ms_swift_methods.method_of(command, settings) is TrainingMethod.GRPO
            and command == ms_swift_methods.RLHF
        )
        job = replace(job, asked=asked)
        return replace(
            ms_swift_generation.requested(job, settings, generates=generates),
            multimodal=_is_multimodal(settings),
            compares_samples=ms_swift_methods.compares_samples(command, settings),
        )

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks torchrun starts; without its variables there is one."""
        if invocation.launch and _is_cli(invocation.launch):
            return self._world(request)
        return super().world(invocation, request, device)

    def sharding(
        self, invocation: Invocation, request: JobRequest
    ) -> tuple[Sharding | None, frozenset[Offload] | None]:
        """Read sharding and offload; the names of ms-swift's own configs are known."""
        name = invocation.settings.get("deepspeed")
        known = _ZERO_NAMES.get(name) if isinstance(name, str) else None
        return known or super().sharding(invocation, request)

    def fsdp_configs(
        self, settings: Settings, request: JobRequest
    ) -> dict[str, Mapping[str, object] | None]:
        """Return the options of the file that `fsdp` names, or of ms-swift's own."""
        name = settings.get(hf.FSDP.name)
        if not name:
            return {}
        if name == _FSDP2:
            return {hf.FSDP.name: {"activation_checkpointing": True}}
        found = hf.config_stated(name, request.files, request.cwd)
        if found is None:
            return {hf.FSDP.name: None}
        inner = found.get(FSDP_CONFIG)
        kind = {hf.FSDP.name: found.get(hf.FSDP.name)}
        return {hf.FSDP.name: {**kind, **(inner if isinstance(inner, dict) else {})}}

    def edit(self, invocation: Invocation, job: Job, plan: Plan) -> Settings:
        """Write the plan's fields; a new batch always comes with its accumulation."""
        settings = super().edit(invocation, job, plan)
        is_new = plan.micro_batch != job.asked.micro_batch
        if is_new and _STEPS.of(settings) != plan.accumulation:
            settings = settings.set(_STEPS.name, plan.accumulation)
        return trl_generation.edited(settings, job, plan)

    def shard(
        self, invocation: Invocation, job: Job, plan: Plan, folder: str
    ) -> tuple[Invocation, tuple[File, ...]]:
        """Use one of ms-swift's own DeepSpeed configs if one matches, else write a file."""
        settings = invocation.settings
        stated, name = settings.get("deepspeed"), _zero_name(plan)
        if not stated or stated in _ZERO_NAMES:
            if hf.zero_as_asked(job, plan):
                return invocation, ()
            if name:
                return replace(invocation, settings=settings.set("deepspeed", name)), ()
        settings, files = hf.with_zero_file(settings, job, plan, folder)
        return replace(invocation, settings=settings), files

    def env(self, job: Job, plan: Plan, begins: Continuation | None) -> dict[str, str]:
        """Return the environment of an attempt; DeepSpeed brings torchrun with it."""
        env = super().env(job, plan, begins)
        gained = plan.sharding in ZERO and job.asked.sharding not in ZERO
        if gained and not any(name in job.env for name in ("NPROC_PER_NODE", "NNODES")):
            env["NPROC_PER_NODE"] = str(job.world.size)
        return env

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the Trainer's checkpoints, unless each run gets a separate folder."""
        versioned = flag("add_version", default=True)
        settings = self.of_job(job).settings
        return None if versioned.of(settings) else super().checkpoint_layout(job)

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives."""
        if self.checkpoint_layout(job) is None:
            return Mode.RESTART, "ms-swift puts each run into a separate folder (add_version)"
        return super().resume_mode(job, before, after)

    def _world(self, request: JobRequest) -> World:
        nodes = launchers.count(request.env.get("NNODES"), 1)
        stated = "NPROC_PER_NODE" in request.env
        local = request.env.get("NPROC_PER_NODE") if stated else 1
        return World(nodes=nodes, per_node=launchers.count(local, max(1, request.gpus)))
