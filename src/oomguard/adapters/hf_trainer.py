"""Scripts on Hugging Face's Trainer: `python|torchrun|accelerate launch train.py --flags ...`.

Source: transformers 5.6.0, hf_argparser.py, trainer.py; trl 1.16.0, trainer/model_config.py.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from oomguard.adapters import allocator, common, knobs, launchers, resuming
from oomguard.adapters import training_arguments as hf
from oomguard.adapters.base import Request
from oomguard.adapters.common import Refusal
from oomguard.adapters.deepspeed import ZERO
from oomguard.adapters.document import Document
from oomguard.adapters.knobs import Edits, Knob, Knobs, as_object, flag
from oomguard.adapters.launchers import Launch, Launcher
from oomguard.adapters.settings import Settings
from oomguard.adapters.words import Words
from oomguard.checkpoint import Continuation, Layout, Mode
from oomguard.command import Command, File
from oomguard.errors import ConfigError, Where
from oomguard.job import Device, Job, Source, World
from oomguard.plan import Plan, Quantization, Sharding, Tuning

_ENVIRONMENT = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"),
)
_MODULES_OF_OTHERS = {"llamafactory", "litgpt", "axolotl", "swift", "torchtune"}
_LENGTHS = (
    *("max_length", "max_seq_length", "block_size", "model_max_length", "cutoff_len"),
    "max_source_length",
)
_LOAD_4BIT, _LOAD_8BIT = flag("load_in_4bit"), flag("load_in_8bit")
_NESTED = flag("use_bnb_nested_quant")
_KIND = knobs.text("bnb_4bit_quant_type", "nf4")
_USES_LORA = ("use_peft", "use_lora")
_RANKS = ("lora_r", "lora_rank")


def _tuning(settings: Settings) -> Tuning | None:
    stated = [key for key in _USES_LORA if settings.has(key)]
    if stated:
        return Tuning.LORA if any(flag(key).of(settings) for key in stated) else Tuning.FULL
    return Tuning.LORA if any(settings.has(key) for key in _RANKS) else None


def _quantization(settings: Settings) -> Quantization | None:
    # Only a script that states --load_in_4bit is known to have it.
    if not settings.has(_LOAD_4BIT.name):
        return None
    if _LOAD_8BIT.of(settings):
        return Quantization.INT8
    # A script without --use_bnb_nested_quant has one 4-bit format of its own, whichever it is.
    nested = _NESTED.of(settings) or not settings.has(_NESTED.name)
    four = hf.four_bit(_KIND.of(settings), nested)
    return four if _LOAD_4BIT.of(settings) else Quantization.NONE


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    kind, nested = hf.spell_four_bit(value) or (None, False)
    wanted = {
        as_object(_LOAD_4BIT): kind is not None,
        as_object(_LOAD_8BIT): value is Quantization.INT8,
        **({as_object(_NESTED): nested, as_object(_KIND): kind} if kind else {}),
    }
    edits = {key: setting for key, setting in wanted.items() if settings.has(key.name)}
    after = settings
    for key, setting in edits.items():
        after = after.set(key.name, setting)
    return edits if _quantization(after) is value else None


_KNOBS = Knobs(
    knobs=(
        *hf.SHARED,
        knobs.stated("sequence_length", *(knobs.maybe_number(name) for name in _LENGTHS)),
        knobs.direct("checkpointing", flag("gradient_checkpointing")),
        Knob(field="precision", read=hf.mixed_precision, edits=hf.precision_edits),
        Knob(field="quantization", read=_quantization, edits=_quantization_edits),
        Knob(field="tuning", read=_tuning, edits=lambda _, __: None),
        knobs.stated("lora_rank", *(knobs.maybe_number(name) for name in _RANKS)),
        hf.loss_kernel("use_liger_kernel"),
        knobs.stated("low_cpu_mem_usage", flag("low_cpu_mem_usage")),
    )
)

_REFUSALS = (
    Refusal(
        message="You cannot perform fine-tuning on purely quantized models.",
        when=lambda _, __, plan: plan.quantization in hf.ON_THE_FLY and plan.tuning is Tuning.FULL,
    ),
    Refusal(
        message="DeepSpeed Zero-3 is not compatible with passing a `device_map`.",
        when=lambda _, __, plan: (
            plan.quantization in hf.ON_THE_FLY and plan.sharding is Sharding.ZERO3
        ),
    ),
    Refusal(
        # transformers before 5; later ones ignore the argument
        message="DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True`",
        when=lambda _, __, plan: plan.sharding is Sharding.ZERO3 and plan.low_cpu_mem_usage is True,
    ),
    Refusal(
        message="`auto_find_batch_size` isn't supported yet with DeepSpeed Zero-3.",
        when=lambda _, __, plan: (
            plan.sharding is Sharding.ZERO3 and plan.auto_find_batch_size is True
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invocation:
    """A command line taken apart. `flags` are those that come from a flat YAML config."""

    launch: Launch
    words: tuple[str, ...]
    source: Source | None
    is_json: bool = False

    @property
    def settings(self) -> Settings:
        words = Words(words=self.words)
        if self.source is None:
            return Settings(late=words)
        return Settings(file=Document.parse(self.source), early=words)

    def argv(
        self, head: tuple[str, ...], settings: Settings, config: str | None
    ) -> tuple[str, ...]:
        if settings.file is None:
            return (*head, *settings.late.words)
        if self.is_json:
            return (*head, *((config,) if config else ()))
        return (*head, *settings.early.words, *flags_of(settings.file))


def flags_of(document: Document) -> tuple[str, ...]:
    """Turn a flat config into the flags of a script: `--key value`, null left out.

    Raises:
        ConfigError: for a list of lists or of mappings.
    """
    words: list[str] = []
    for key, value in document.values.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in values) and isinstance(value, list):
            raise ConfigError(
                f"{key} is no list of plain values, it cannot become words of a command line",
                where=document.where(key),
            )
        if value is not None:
            words += [f"--{key}", *(_as_word(item) for item in values)]
    return tuple(words)


def _as_word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _split(argv: tuple[str, ...], source: Source | None) -> _Invocation:
    launch = launchers.parse(argv)
    if launch is None:
        raise ConfigError(
            "starts no Python script in a way known here",
            where=Where(key=" ".join(argv[:2])),
            next_step="Write python, torchrun, accelerate launch or deepspeed, then the script.",
        )
    if source is None or _args_file(launch):
        return _Invocation(
            launch=launch,
            words=() if source else launch.words,
            source=source,
            is_json=source is not None,
        )
    flags = flags_of(Document.parse(source))
    is_derived = bool(flags) and launch.words[-len(flags) :] == flags
    words = launch.words[: -len(flags)] if is_derived else launch.words
    return _Invocation(launch=launch, words=words, source=source)


def _args_file(launch: Launch) -> str | None:
    only = launch.words[0] if len(launch.words) == 1 else ""
    return only if only.endswith(".json") else None


def _world(launch: Launch, request: Request, device: Device) -> World:
    if launch.launcher is not Launcher.PYTHON:
        return common.launched_world(launch, request)
    # Without a launcher the Trainer spreads each batch over all GPUs by nn.DataParallel.
    return World(per_node=max(1, request.gpus) if device is Device.CUDA else 1)


def _distributed(launch: Launch, ranks: int, python: str) -> tuple[str, ...]:
    """Put torchrun before a program that `python` starts: DeepSpeed wants a process group."""
    options = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    before = launch.head[: -2 if launch.is_module else -1] or (python,)
    return (*before, *options, *(("-m",) if launch.is_module else ()), launch.program)


class HFTrainer:
    """Scripts on Hugging Face's Trainer."""

    name = "hf_trainer"
    title = "Hugging Face Trainer script"

    def recognise(self, document: Mapping[str, object]) -> bool:
        """Take flat configs of TrainingArguments, unless a key belongs to LLaMA-Factory alone."""
        return not hf.ARGUMENTS.isdisjoint(document) and hf.LLAMAFACTORY_KEYS.isdisjoint(document)

    def recognise_command(self, argv: tuple[str, ...]) -> bool:
        """Take a Python script or module behind any launcher, but no other framework's."""
        launch = launchers.parse(argv)
        if launch is None or (launch.words and launch.words[0].endswith((".yaml", ".yml"))):
            return False
        if launch.is_module:
            return launch.program.split(".")[0] not in _MODULES_OF_OTHERS
        return launch.program.endswith(".py")

    def command_for(
        self,
        source: Source,
        document: Mapping[str, object],  # noqa: ARG002  part of the protocol
        command: tuple[str, ...],
    ) -> tuple[str, ...]:
        """Give the file's own command; a JSON goes to the script, other files become its flags."""
        if not command:
            raise ConfigError(
                "the file does not say which script it is for",
                where=Where(file=source.path),
                next_step="Add to it: oomguard: {command: [python, train.py]}",
            )
        return (*command, source.path) if source.path.endswith(".json") else command

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Name the `.json` that is a script's only word."""
        launch = launchers.parse(argv)
        return _args_file(launch) if launch else None

    def further_files(self, request: Request) -> tuple[str, ...]:
        """Name the DeepSpeed file, and accelerate's."""
        invocation = _split(request.argv, request.source)
        files = (
            hf.deepspeed_path(invocation.settings, request.cwd),
            common.launch_config(invocation.launch, request),
        )
        return tuple(path for path in files if path)

    def read(self, request: Request) -> Job:
        """Read the job."""
        invocation = _split(request.argv, request.source)
        settings = invocation.settings
        device = hf.device(settings, request.gpus)
        sharding, offload = hf.sharding(settings, request.cwd, request.files)
        plan = Plan(
            **_KNOBS.read(settings),  # type: ignore[arg-type]  # each knob reads its field's type
            sharding=sharding,
            offload=offload,
            allocator=None if device is Device.CPU else allocator.allocator_of(request.env),
        )
        return Job(
            framework=self.name,
            argv=invocation.argv(invocation.launch.head, settings, _args_file(invocation.launch)),
            cwd=request.cwd,
            config=request.source,
            asked=plan,
            world=_world(invocation.launch, request, device),
            device=device,
            env=common.launch_env(request.env, _ENVIRONMENT),
            python=request.python,
            packages=request.packages,
            output_dir=posixpath.join(request.cwd, hf.OUTPUT_DIR.of(settings)),
        )

    def settle(self, job: Job, plan: Plan) -> Plan:  # noqa: ARG002  part of the protocol
        """Give the plan as it is: no change brings another with it."""
        return plan

    def layout(self, job: Job) -> Layout | None:
        """Name the Trainer's checkpoints."""
        return resuming.layout(job)

    def keeps(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Say what survives."""
        settings = _split(job.argv, job.config).settings
        return resuming.keeps(settings, before, after, packs=bool(settings.get("packing")))

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Give the user's command, its flags or the copy of its config edited."""
        invocation = _split(job.argv, job.config)
        settings = resuming.resumed(_KNOBS.apply(invocation.settings, job, plan), begins)
        head, files = invocation.launch.head, tuple[File, ...]()
        if not hf.zero_as_asked(job, plan):
            zero = hf.zero_file(job, plan, folder)
            settings = settings.set(hf.DEEPSPEED.name, zero[0] if zero else None)
            files = (File(path=zero[0], text=zero[1]),) if zero else ()
        if plan.sharding in ZERO and invocation.launch.launcher is Launcher.PYTHON and files:
            head = _distributed(invocation.launch, job.world.size, job.python)
        copy = common.config_copy(settings, folder)
        config = copy[0].path if copy else None
        return Command(
            argv=invocation.argv(head, settings, config),
            cwd=job.cwd,
            env=common.attempt_env(job, plan),
            files=(*files, *copy),
            config=config,
        )

    def refuses(self, job: Job, plan: Plan) -> str | None:
        """Say the Trainer's own message for a plan that it refuses."""
        settings = _split(job.argv, job.config).settings
        return (
            common.first_refusal(_REFUSALS, settings, job, plan)
            or hf.refuses_sharding(job, plan)
            or _KNOBS.unwritable(settings, job, plan, elsewhere=hf.ELSEWHERE)
        )

    def needs(self, job: Job, plan: Plan) -> frozenset[str]:
        """Name deepspeed, bitsandbytes and liger_kernel where the plan brings them in."""
        return hf.packages(plan) - hf.packages(job.asked)
