"""LitGPT: `litgpt finetune_lora CHECKPOINT --config x.yaml [--train.micro_batch_size 1]`.

Source: litgpt 0.5.13, finetune/{lora,full,adapter,adapter_v2}.py, args.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from oomguard.adapters import allocator_env, common, fields, launchers, trial
from oomguard.adapters.common import Refusal
from oomguard.adapters.contract import Adapter, Claim, JobRequest, Marks
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, as_object, choice
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.invocation import with_config
from oomguard.adapters.litgpt_memory import recipe_of
from oomguard.configfile.document import Document, Source
from oomguard.configfile.flags import Flags, Style, is_flag
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import Command
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Overlong, Plan, Precision, Quantization, Tuning
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
    return str(value) if isinstance(value, int) else fields.word(value)


def _class_path(value: object) -> str:
    return fields.word(value.get("class_path") if isinstance(value, dict) else value)


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
    return {as_object(fields.text("optimizer.class_path", "") if nested else _OPTIMIZER): value}


_COMMON = (
    fields.direct("micro_batch", _MICRO),
    fields.direct("sequence_length", _LENGTH),
    fields.always("overlong", Overlong.CUT),
    choice("precision", _PRECISION, _PRECISIONS),
    Binding(field="optimizer", read=_OPTIMIZER.of, edits=_optimizer_edits),
    fields.stated(
        "loader_workers",
        Key(name="data.init_args.num_workers", decode=fields.natural, default=0),
    ),
)
_QUANTIZED = (choice("quantization", fields.maybe_text("quantize"), _QUANTIZATIONS),)
_LORA = Bindings(
    knobs=(*_COMMON, *_QUANTIZED, fields.direct("lora_rank", fields.number("lora_r", 8)))
)
_KNOBS = {
    "finetune": _LORA,
    "finetune_lora": _LORA,
    "finetune_full": Bindings(knobs=_COMMON),
    "finetune_adapter": Bindings(knobs=(*_COMMON, *_QUANTIZED)),
    "finetune_adapter_v2": Bindings(knobs=(*_COMMON, *_QUANTIZED)),
}
_MIXED = frozenset({Precision.BF16_MIXED, Precision.FP16_MIXED})
_TUNINGS = {"finetune": Tuning.LORA, "finetune_lora": Tuning.LORA, "finetune_full": Tuning.FULL}
#: Fields that no key holds by itself: two keys and the world, or the environment.
_ELSEWHERE = ("accumulation", "allocator")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invocation:
    """A command line taken apart: `early` ends with the config; what follows it beats it."""

    head: tuple[str, ...]
    command: str
    early: Flags
    late: Flags

    def argv(self, settings: Settings, config: str | None) -> tuple[str, ...]:
        early = settings.early.set("config", config) if config else settings.early
        return (*self.head, *early.words, *settings.late.words)


def _split(argv: tuple[str, ...]) -> _Invocation | None:
    launch = launchers.parse(argv)
    if argv and posixpath.basename(argv[0]) == "litgpt":
        head = argv[:1]
    elif launch and launch.is_module and launch.program in ("litgpt", "litgpt.__main__"):
        head = launch.head
    else:
        return None
    words = argv[len(head) :]
    if not words or words[0] not in _OUTPUT:
        return None
    ends = [at for at in range(1, len(words) + 1) if _names_config(words[:at])]
    end = ends[-1] if ends else 1
    return _Invocation(
        head=(*head, words[0]),
        command=words[0],
        early=Flags(words=words[1:end], style=Style.JSONARGPARSE),
        late=Flags(words=words[end:], style=Style.JSONARGPARSE),
    )


def _names_config(words: tuple[str, ...]) -> bool:
    return words[-1].startswith("--config=") or words[-2:-1] == ("--config",)


def _invocation(argv: tuple[str, ...]) -> _Invocation:
    found = _split(argv)
    if found is None:
        raise ConfigError(
            "is no fine-tuning command of LitGPT",
            where=Where(key=" ".join(argv[:2])),
            next_step="Write litgpt finetune_lora CHECKPOINT --config x.yaml.",
        )
    return found


def _settings(argv: tuple[str, ...], source: Source | None) -> Settings:
    invocation = _invocation(argv)
    file = source.document if source else None
    return Settings(late=invocation.late, file=file, early=invocation.early)


def _checkpoint(settings: Settings) -> str | None:
    return (
        _positional(settings.late.words)
        or _CHECKPOINT.of(settings)
        or _positional(settings.early.words)
    )


def _positional(words: tuple[str, ...]) -> str | None:
    is_value = False
    for word in words:
        if not is_flag(word) and not is_value:
            return word
        is_value = is_flag(word) and "=" not in word
    return None


def _model_config(settings: Settings, cwd: str) -> str | None:
    checkpoint = _checkpoint(settings)
    return posixpath.join(cwd, checkpoint, "model_config.yaml") if checkpoint else None


def _block_size(path: str | None, files: Mapping[str, str]) -> int | None:
    if path is None or path not in files:
        return None
    document = Document.parse(Source(path=path, text=files[path]))
    return fields.maybe_number("block_size").of(Settings(file=document))


def _world(settings: Settings, gpus: int) -> World:
    value = settings.get("devices")
    if value in ("auto", -1):
        return World(nodes=_NODES.of(settings), per_node=max(1, gpus))
    return World(nodes=_NODES.of(settings), per_node=fields.number("devices", 1).of(settings))


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


class LitGPT(Adapter):
    """LitGPT."""

    name = "litgpt"
    title = "LitGPT"
    marks = Marks(
        own=frozenset({"checkpoint_dir", "train.micro_batch_size", "train.global_batch_size"})
    )
    python_packages = ("litgpt",)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim `litgpt finetune...` and `python -m litgpt finetune...`."""
        return Claim.OWN if _split(argv) else Claim.NO

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `litgpt COMMAND --config FILE`; LoRA's keys select finetune_lora."""
        if not command and _LORA_KEYS.isdisjoint(document):
            raise ConfigError(
                "the file does not say which LitGPT command it is for: finetune_lora, "
                "finetune_full, finetune_adapter or finetune_adapter_v2",
                where=Where(file=source.path),
                next_step="Add to it: oomguard: {command: [litgpt, finetune_lora]}",
            )
        return with_config(command or ("litgpt", "finetune_lora"), "--config", source.path)

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return the file after the last `--config`."""
        invocation = _split(argv)
        path = invocation.early.get("config") if invocation else None
        return str(path) if path else None

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the model's config, which knows the longest sequence."""
        path = _model_config(_settings(request.argv, request.source), request.cwd)
        return (path,) if path else ()

    def read(self, request: JobRequest) -> Job:
        """Read the job; the global batch is what remains after LitGPT's floor division."""
        settings = _settings(request.argv, request.source)
        command = _invocation(request.argv).command
        world = _world(settings, request.gpus)
        fields = _KNOBS[command].read(settings)
        if fields["sequence_length"] is None:
            model = _model_config(settings, request.cwd)
            fields["sequence_length"] = _block_size(model, request.files)
        return Job(
            framework=self.name,
            argv=request.argv,
            cwd=request.cwd,
            config=request.source,
            asked=Plan(
                **fields,  # type: ignore[arg-type]  # each knob reads its field's type
                accumulation=_accumulation(settings, world),
                tuning=_TUNINGS.get(command, Tuning.OTHER),
                allocator=allocator_env.allocator_of(request.env) if request.gpus else None,
            ),
            world=world,
            device=Device.CUDA if request.gpus else Device.CPU,
            env=common.launch_env(request.env, _ENVIRONMENT),
            python=request.python,
            packages=request.packages,
            output_dir=posixpath.join(request.cwd, _OUT.of(settings) or _OUTPUT[command]),
        )

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set bf16 weights for a newly quantized base: LitGPT refuses mixed precision with it."""
        gained = _quantized(plan) and plan.quantization is not job.asked.quantization
        if gained and plan.precision in _MIXED:
            return replace(plan, precision=Precision.BF16_TRUE)
        return plan

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the checkpoints of finetune_full; the others hold weights alone."""
        if _invocation(job.argv).command != "finetune_full" or job.output_dir is None:
            return None
        return Layout(folder=job.output_dir, name=r"step-(?P<step>\d+)", needs=("lit_model.pth",))

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives: LitGPT counts micro-batches, another size would repeat samples."""
        if _invocation(job.argv).command != "finetune_full":
            return Mode.RESTART, "LitGPT saves only weights here and has no way to go on"
        if before.micro_batch != after.micro_batch:
            return Mode.RESTART, "LitGPT would train on samples twice after another micro batch"
        if before.optimizer != after.optimizer:
            return Mode.RESTART, "the optimizer changes"
        return Mode.FULL, ""

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the user's command with a copy of the config, edited where the plan differs."""
        invocation = _invocation(job.argv)
        settings = _settings(job.argv, job.config)
        settings = _KNOBS[invocation.command].apply(settings, job, plan)
        if _GLOBAL.of(settings) // job.world.size // plan.micro_batch != plan.accumulation:
            settings = settings.set(_GLOBAL.name, plan.rank_batch * job.world.size)
        if begins is not None and begins.checkpoint is not None:
            path = posixpath.join(begins.checkpoint.path, "lit_model.pth")
            settings = settings.set("resume", path)
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
        """Return the job as one to try; a limit on its steps would not go with its warm-up."""
        settings = _settings(job.argv, job.config).set(_OUT.name, folder).set("logger_name", "csv")
        edits: dict[str, object] = {"eval.initial_validation": False, "resume": False}
        settings = trial.stated(settings, edits)
        invocation = _invocation(job.argv)
        return trial.with_settings(job, settings, invocation.argv(settings, None), folder)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what the settings say of memory beyond the plan."""
        settings = _settings(job.argv, job.config)
        return recipe_of(settings, job, _checkpoint(settings))

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Say LitGPT's own message for a plan that it refuses."""
        settings = _settings(job.argv, job.config)
        table = _KNOBS[_invocation(job.argv).command]
        return common.first_refusal(_REFUSALS, settings, job, plan) or table.unwritable(
            settings, job, plan, elsewhere=_ELSEWHERE
        )

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Name bitsandbytes where the plan brings it in."""
        return hf.packages(plan) - hf.packages(job.asked)
