"""LitGPT: `litgpt finetune_lora CHECKPOINT --config x.yaml [--train.micro_batch_size 1]`.

Source: litgpt 0.5.13, finetune/{lora,full,adapter,adapter_v2}.py, args.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import fields, launchers, trial
from oomguard.adapters.config_adapter import ConfigAdapter, Refusal
from oomguard.adapters.contract import JobRequest, Marks
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, choice
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.invocation import Form, Invocation, with_config
from oomguard.adapters.litgpt_memory import LORA_RANK, memory_settings_of
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.settings.litgpt_settings import LITGPT
from oomguard.configfile import values
from oomguard.configfile.document import Files, Source
from oomguard.configfile.flags import Flags, Style, is_flag
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Overlong, Plan, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import Device, Job, World

_OUTPUT = {
    "finetune": "out/finetune/lora",
    "finetune_lora": "out/finetune/lora",
    "finetune_full": "out/finetune/full",
    "finetune_adapter": "out/finetune/adapter",
    "finetune_adapter_v2": "out/finetune/adapter-v2",
}
_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LT_ACCELERATOR")
_LORA_KEYS = frozenset(
    {"lora_r", "lora_alpha", "lora_dropout", "lora_query", "lora_key", "lora_value"}
    | {"lora_projection", "lora_mlp", "lora_head", "quantize"}
)
#: Settings that only `litgpt pretrain` has (pretrain.py), which names a model, not a checkpoint.
_PRETRAIN_KEYS = frozenset({"model_name", "initial_checkpoint_dir", "tokenizer_dir"})
_TUNINGS_BY_FILE = ("finetune_full", "finetune_lora", "finetune_adapter", "finetune_adapter_v2")
_PRECISIONS = {
    "bf16-mixed": Precision.BF16_MIXED,
    "16-mixed": Precision.FP16_MIXED,
    "32-true": Precision.FP32,
    "bf16-true": Precision.BF16_TRUE,
    "16-true": Precision.FP16_TRUE,
    "bf16": Precision.BF16_MIXED,
    "16": Precision.FP16_MIXED,
    "32": Precision.FP32,
}
_QUANTIZATIONS: dict[str | None, Quantization] = {
    None: Quantization.NONE,
    "bnb.nf4": Quantization.NF4,
    "bnb.nf4-dq": Quantization.NF4_DOUBLE,
    "bnb.fp4": Quantization.FP4,
    "bnb.fp4-dq": Quantization.FP4_DOUBLE,
    "bnb.int8-training": Quantization.INT8,
}


def _precision_word(value: object) -> str:
    return str(value) if isinstance(value, int) else values.word(value)


def _class_path(value: object) -> str:
    return values.word(value.get("class_path") if isinstance(value, dict) else value)


_MICRO = fields.number("train.micro_batch_size", 1)
_GLOBAL = fields.number("train.global_batch_size", 16)
_LENGTH = fields.maybe_number("train.max_seq_length")
_NODES = fields.number("num_nodes", 1)
_OUT = fields.maybe_text("out_dir")
_CHECKPOINT = fields.maybe_text("checkpoint_dir")
_PRECISION: Key[str] = Key(name="precision", decode=_precision_word, default="bf16-mixed")
_OPTIMIZER: Key[str] = Key(name="optimizer", decode=_class_path, default="AdamW")


def _optimizer_edits(settings: Settings, value: object) -> Edits:
    nested = isinstance(settings.get(_OPTIMIZER.name), dict)
    return {fields.text("optimizer.class_path", "") if nested else _OPTIMIZER: value}


_COMMON = (
    fields.direct("micro_batch", _MICRO),
    fields.direct("sequence_length", _LENGTH),
    fields.always("overlong", Overlong.CUT),
    choice("precision", _PRECISION, _PRECISIONS),
    Binding(field="optimizer", read=_OPTIMIZER.of, edits=_optimizer_edits),
    fields.stated(
        "loader_workers",
        Key(name="data.init_args.num_workers", decode=values.natural, default=0),
    ),
)
_QUANTIZED = (choice("quantization", fields.maybe_text("quantize"), _QUANTIZATIONS),)
_LORA = Bindings(bindings=(*_COMMON, *_QUANTIZED, fields.direct("lora_rank", LORA_RANK)))
_BINDINGS = {
    "finetune": _LORA,
    "finetune_lora": _LORA,
    "finetune_full": Bindings(bindings=_COMMON),
    "finetune_adapter": Bindings(bindings=(*_COMMON, *_QUANTIZED)),
    "finetune_adapter_v2": Bindings(bindings=(*_COMMON, *_QUANTIZED)),
}
_MIXED = frozenset({Precision.BF16_MIXED, Precision.FP16_MIXED})
_TUNINGS = {"finetune": Tuning.LORA, "finetune_lora": Tuning.LORA, "finetune_full": Tuning.FULL}


def _quantized(plan: Plan) -> bool:
    return plan.quantization in hf.ON_THE_FLY


_REFUSALS = (
    Refusal(
        message="error: Unrecognized arguments: --quantize",
        when=lambda _, __, plan: _quantized(plan) and plan.tuning is Tuning.FULL,
    ),
    Refusal(
        message="Bitsandbytes is only supported on CUDA GPUs.",
        when=lambda _, job, plan: _quantized(plan) and job.device is Device.CPU,
    ),
    Refusal(
        message="Quantization is currently not supported for multi-GPU training.",
        when=lambda _, job, plan: _quantized(plan) and job.world.size > 1,
    ),
    Refusal(
        message="Quantization and mixed precision is not supported.",
        when=lambda _, __, plan: _quantized(plan) and plan.precision in _MIXED,
    ),
    Refusal(  # lightning/fabric/plugins/precision/bitsandbytes.py
        message="'int8-training' only works with `dtype=torch.float16`",
        when=lambda _, __, plan: (
            plan.quantization is Quantization.INT8 and plan.precision is not Precision.FP16_TRUE
        ),
    ),
    Refusal(  # its layers leave has_fp16_weights on
        message="LitGPT's int8-training keeps 16-bit weights beside the 8-bit ones.",
        when=lambda _, job, plan: (
            Quantization.INT8 is plan.quantization is not job.asked.quantization
        ),
    ),
    Refusal(
        message="The chosen quantization format only supports the AdamW optimizer.",
        when=lambda _, __, plan: _quantized(plan) and "AdamW" not in (plan.optimizer or ""),
    ),
    Refusal(
        message="LitGPT has no setting for gradient checkpointing: on with several devices alone.",
        when=lambda _, job, plan: plan.checkpointing != job.asked.checkpointing,
    ),
    Refusal(
        message="LitGPT has no DeepSpeed ZeRO and no offload.",
        when=lambda _, job, plan: (
            (plan.sharding, plan.offload) != (job.asked.sharding, job.asked.offload)
        ),
    ),
)


def _start_of(document: Mapping[str, object]) -> tuple[str, ...]:
    """Return the command that a config's keys select, () if they fit several or none."""
    if not _LORA_KEYS.isdisjoint(document):
        return ("litgpt", "finetune_lora")
    # Of the fine-tuning commands finetune_full alone can resume.
    tunes_all = "resume" in document and _PRETRAIN_KEYS.isdisjoint(document)
    return ("litgpt", "finetune_full") if tunes_all else ()


def _names(commands: tuple[str, ...]) -> str:
    return f"{', '.join(commands[:-1])} or {commands[-1]}"


def _names_config(args: tuple[str, ...]) -> bool:
    return args[-1].startswith("--config=") or args[-2:-1] == ("--config",)


def _command(invocation: Invocation) -> str:
    """Return the subcommand: finetune_lora, finetune_full, ..."""
    return invocation.head[-1]


def _checkpoint(settings: Settings) -> str | None:
    return (
        _positional(settings.late.args)
        or _CHECKPOINT.of(settings)
        or _positional(settings.early.args)
    )


def _positional(args: tuple[str, ...]) -> str | None:
    is_value = False
    for word in args:
        if not is_flag(word) and not is_value:
            return word
        is_value = is_flag(word) and "=" not in word
    return None


def _model_config(settings: Settings, cwd: str) -> str | None:
    checkpoint = _checkpoint(settings)
    return posixpath.join(cwd, checkpoint, "model_config.yaml") if checkpoint else None


def _block_size(path: str | None, files: Mapping[str, str]) -> int | None:
    document = Files.of(files).document(path)
    return fields.maybe_number("block_size").of(Settings(file=document)) if document else None


def _accumulation(settings: Settings, world: World) -> int:
    """Return the micro-batches of one step on one rank; LitGPT drops what does not divide."""
    accumulation = _GLOBAL.of(settings) // world.size // _MICRO.of(settings)
    if accumulation < 1:
        raise ConfigError(
            f"a micro batch of {_MICRO.of(settings)} on {world.size} device(s) is more than the "
            f"global batch of {_GLOBAL.of(settings)}; LitGPT stops with a bare AssertionError",
            where=settings.origin(_MICRO.name),
            next_step="Lower train.micro_batch_size or raise train.global_batch_size.",
        )
    return accumulation


class LitGPT(ConfigAdapter):
    """LitGPT."""

    name = "litgpt"
    title = "LitGPT"
    marks = Marks(
        own=frozenset({"checkpoint_dir", "train.micro_batch_size", "train.global_batch_size"})
    )
    programs = ("litgpt",)
    model_key = _CHECKPOINT.name
    python_packages = ("litgpt",)
    refusals = _REFUSALS
    environment = _ENVIRONMENT
    elsewhere = ("accumulation", "allocator")  # two keys and the world hold the first
    output = _OUT
    usage = "Write litgpt finetune_lora CHECKPOINT --config x.yaml."

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line: the config beats what is before it, flags after it beat it."""
        launch = launchers.parse(argv)
        if argv and posixpath.basename(argv[0]) == "litgpt":
            head = argv[:1]
        elif launch and launch.is_module and launch.program in ("litgpt", "litgpt.__main__"):
            head = launch.head
        else:
            return None
        args = argv[len(head) :]
        if not args or args[0] not in _OUTPUT:
            return None
        ends = [at for at in range(1, len(args) + 1) if _names_config(args[:at])]
        end = ends[-1] if ends else 1
        early = Flags(args=args[1:end], style=Style.JSONARGPARSE)
        name = early.get("config")
        return Invocation(
            head=(*head, args[0]),
            settings=Settings(
                late=Flags(args=args[end:], style=Style.JSONARGPARSE),
                file=source.document if source else None,
                early=early,
            ),
            form=Form.OPTION,
            config=str(name) if name else None,
        )

    def groups_of(self, job: Job) -> SettingGroups:
        """Return the settings of the subcommand; `finetune` is the one with LoRA."""
        command = _command(self.of_job(job))
        return LITGPT.get(command, LITGPT["finetune_lora"])

    def tables(self) -> Mapping[str, SettingGroups]:
        """Return the settings of each subcommand."""
        return {f"litgpt {command}": groups for command, groups in LITGPT.items()}

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `litgpt COMMAND --config FILE`; a key that one command alone has selects it.

        Raises:
            ConfigError: if the file is for `litgpt pretrain`, or fits several commands.
        """
        start = command or _start_of(document)
        if start:
            return with_config(start, "--config", source.path)
        if not _PRETRAIN_KEYS.isdisjoint(document):
            raise ConfigError(
                "this is a config of litgpt pretrain, which oomguard does not support",
                where=Where(file=source.path),
                next_step=f"It runs litgpt {_names(_TUNINGS_BY_FILE)}.",
            )
        raise ConfigError(
            f"the file does not say which LitGPT command it is for: {_names(_TUNINGS_BY_FILE)}",
            where=Where(file=source.path),
            next_step="It has none of LoRA's settings. If it trains all weights, add to it: "
            "oomguard: {command: [litgpt, finetune_full]}",
        )

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the model's config, which holds the longest sequence."""
        settings = self.invocation(request.argv, request.source).settings
        path = _model_config(settings, request.cwd)
        return (path,) if path else ()

    def read(self, request: JobRequest) -> Job:
        """Read the job; each command has its own output folder."""
        job = super().read(request)
        folder = _OUTPUT[_command(self.of_job(job))]
        return replace(job, output_dir=job.output_dir or posixpath.join(job.cwd, folder))

    def bindings_of(self, invocation: Invocation) -> Bindings:
        """Return the bindings of the subcommand."""
        return _BINDINGS[_command(invocation)]

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the requested plan; its global batch is what LitGPT's floor division leaves."""
        fields = super().fields(invocation, request, world)
        settings = invocation.settings
        if fields["sequence_length"] is None:
            model = _model_config(settings, request.cwd)
            fields["sequence_length"] = _block_size(model, request.files)
        return {
            **fields,
            "accumulation": _accumulation(settings, world),
            "tuning": _TUNINGS.get(_command(invocation), Tuning.OTHER),
            # finetune/*.py, setup: FSDPStrategy, each block checkpointed, on several devices.
            **({"sharding": Sharding.FSDP, "checkpointing": True} if world.size > 1 else {}),
        }

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks the job has."""
        settings = invocation.settings
        value = settings.get("devices")
        if value in ("auto", -1):
            return World(nodes=_NODES.of(settings), per_node=max(1, request.gpus))
        return World(nodes=_NODES.of(settings), per_node=fields.number("devices", 1).of(settings))

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set bf16 weights for a newly quantized base: LitGPT refuses mixed precision with it."""
        gained = _quantized(plan) and plan.quantization is not job.asked.quantization
        if gained and plan.precision in _MIXED:
            return replace(plan, precision=Precision.BF16_TRUE)
        return plan

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the checkpoints of finetune_full; the others hold weights alone."""
        if _command(self.of_job(job)) != "finetune_full" or job.output_dir is None:
            return None
        return Layout(folder=job.output_dir, name=r"step-(?P<step>\d+)", needs=("lit_model.pth",))

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives: LitGPT counts micro-batches, another size would repeat samples."""
        if _command(self.of_job(job)) != "finetune_full":
            return Mode.RESTART, "LitGPT saves only weights here and cannot resume"
        if before.micro_batch != after.micro_batch:
            return Mode.RESTART, "LitGPT would train on samples twice after another micro batch"
        if before.optimizer != after.optimizer:
            return Mode.RESTART, "the optimizer changes"
        return Mode.FULL, ""

    def edit(self, invocation: Invocation, job: Job, plan: Plan) -> Settings:
        """Write the plan's fields; the accumulation follows from the global batch."""
        settings = super().edit(invocation, job, plan)
        if _GLOBAL.of(settings) // job.world.size // plan.micro_batch != plan.accumulation:
            settings = settings.set(_GLOBAL.name, plan.rank_batch * job.world.size)
        return settings

    def resumed(self, settings: Settings, job: Job, begins: Continuation | None) -> Settings:
        """Return the settings with the checkpoint to resume from."""
        if begins is None or begins.checkpoint is None:
            return settings
        return settings.set("resume", posixpath.join(begins.checkpoint.path, "lit_model.pth"))

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Return the settings of a trial; a limit on its steps would not go with its warm-up."""
        settings = super().quiet(settings, folder).set("logger_name", "csv")
        return trial.stated(settings, {"eval.initial_validation": False, "resume": False})

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        settings = self.of_job(job).settings
        return memory_settings_of(settings, job, _checkpoint(settings))

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Return bitsandbytes if the plan adds it."""
        return hf.packages(plan) - hf.packages(job.asked)
