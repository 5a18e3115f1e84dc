"""TRL's commands: `trl sft --config x.yaml`, `torchrun -m trl.scripts.dpo ...`.

Source: trl 1.16.0, cli/, scripts/{sft,dpo,reward,kto,grpo,rloo}.py, scripts/utils.py (TrlParser),
trainer/*_{config,trainer}.py of the same.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import yaml

from oomguard.adapters import fields, launchers, trl_generation, trl_methods
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.contract import JobRequest, Marks
from oomguard.adapters.data_names import in_entries, in_folder
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, flag
from oomguard.adapters.hf import accelerate
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.hf_memory import TRL_RANK, trl_memory_settings
from oomguard.adapters.hf.trainer_adapter import (
    NO_ROWS,
    QUANTIZED_ALONE,
    ZERO3_WITH_BATCH_SEARCH,
    TrainerAdapter,
)
from oomguard.adapters.invocation import Invocation, file_option, with_config
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.settings.trl_settings import TRL
from oomguard.adapters.trl_commands import COMMANDS, command_of
from oomguard.configfile import values
from oomguard.configfile.document import Document, Files, Source
from oomguard.configfile.layered import Settings
from oomguard.job.command import File
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

_MODULES = {f"trl.scripts.{name}": name for name in COMMANDS}
_SCRIPTS = {f"trl/scripts/{name}.py": name for name in COMMANDS}
_ACCELERATE = fields.maybe_text("accelerate_config")
#: Flags that TRL passes on to `accelerate launch`; they may be in its config as well.
_HANDED_ON = (
    *("num_processes", "num_machines", "multi_gpu", "cpu", "config_file", "use_deepspeed"),
    *("zero_stage", "offload_optimizer_device", "offload_param_device", "use_fsdp"),
    accelerate.FILE,
)
_PROCESSES = 8  # in every config that comes with TRL
_BF16: Key[bool | None] = Key(name="bf16", decode=values.truth, default=None)
_DTYPE = fields.text("dtype", "float32")
_LOAD_4BIT, _LOAD_8BIT = flag("load_in_4bit"), flag("load_in_8bit")
_NESTED, _KIND = flag("use_bnb_nested_quant"), fields.text("bnb_4bit_quant_type", "nf4")
_PEFT = flag("use_peft")
_ACTIVATIONS = flag("activation_offloading")
_LENGTH: Key[int | None] = Key(name="max_length", decode=values.whole, default=1024)
_PACKING, _STRATEGY = flag("packing"), fields.text("packing_strategy", "bfd")
#: Ways of packing that keep what is longer than a sequence.
_KEEP_ALL = ("bfd_split", "bfd-requeue", "wrapped")


def _precision(settings: Settings) -> Precision | None:
    dtype = _DTYPE.of(settings).removeprefix("torch.")
    if dtype in ("bfloat16", "float16"):
        return Precision.BF16_TRUE if dtype == "bfloat16" else Precision.FP16_TRUE
    if dtype != "float32":
        return None  # "auto": what the checkpoint holds
    if hf.FP16.of(settings):
        return Precision.FP16_MIXED
    return Precision.FP32 if _BF16.of(settings) is False else Precision.BF16_MIXED


def _precision_edits(settings: Settings, value: object) -> Edits | None:
    true = value is Precision.BF16_TRUE
    mixed = hf.precision_edits(settings, Precision.BF16_MIXED if true else value)
    if mixed is None:
        return None
    wanted = {key.name: setting for key, setting in mixed.items()}
    return {
        _DTYPE: "bfloat16" if true else "float32",
        _BF16: wanted["bf16"],
        hf.FP16: wanted["fp16"],
    }


def _quantization(settings: Settings) -> Quantization | None:
    if _LOAD_8BIT.of(settings):
        return Quantization.INT8
    four = hf.four_bit(_KIND.of(settings), _NESTED.of(settings))
    return four if _LOAD_4BIT.of(settings) else Quantization.NONE


def _quantization_edits(_: Settings, value: object) -> Edits | None:
    four = hf.spell_four_bit(value)
    bits: Edits = {
        _LOAD_4BIT: four is not None,
        _LOAD_8BIT: value is Quantization.INT8,
    }
    return {**bits, _KIND: four[0], _NESTED: four[1]} if four else bits


def _sequence_length(settings: Settings) -> int | None:
    whole = settings.has(_LENGTH.name) and settings.get(_LENGTH.name) is None
    return None if whole else _LENGTH.of(settings)  # null truncates nothing


def _overlong(settings: Settings) -> Overlong:
    kept = _PACKING.of(settings) and _STRATEGY.of(settings) in _KEEP_ALL
    return Overlong.CHUNKED if kept else Overlong.CUT


def _overlong_edits(settings: Settings, value: object) -> Edits | None:
    # Without packing each sample is cut by itself.
    args = {Overlong.CHUNKED: "bfd_split", Overlong.CUT: "bfd"}
    if not _PACKING.of(settings) or not isinstance(value, Overlong) or value not in args:
        return None
    return {_STRATEGY: args[value]}


def _loss_kernel(settings: Settings) -> LossKernel:
    # From 1.16 on the plain loss and DPO's are computed without the full logits.
    return LossKernel.FUSED if trl_methods.is_tiled(settings) else LossKernel.EAGER


BINDINGS = Bindings(
    bindings=(
        *hf.SHARED,
        Binding(
            field="sequence_length",
            read=_sequence_length,
            edits=lambda _, value: {_LENGTH: value},
        ),
        Binding(field="overlong", read=_overlong, edits=_overlong_edits),
        fields.direct("checkpointing", flag("gradient_checkpointing", default=True)),
        fields.stated("preprocess_workers", fields.maybe_number("dataset_num_proc")),
        Binding(field="precision", read=_precision, edits=_precision_edits),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        fields.switch("tuning", _PEFT, on=Tuning.LORA, off=Tuning.FULL),
        hf.rank_under(_PEFT, TRL_RANK),
        Binding(field="loss_kernel", read=_loss_kernel, edits=lambda _, __: None),
        fields.direct("precompute_reference", trl_methods.PRECOMPUTE),
        trl_generation.COMPLETION_LENGTH,
        *trl_generation.ENGINE.bindings,
    )
)


def _is_cli(argv: tuple[str, ...]) -> bool:
    return len(argv) > 1 and posixpath.basename(argv[0]) == "trl" and argv[1] in COMMANDS


def _command(launch: LauncherCommand) -> str | None:
    """Return which of TRL's commands a launched program is."""
    program = launch.program
    if launch.is_module:
        return _MODULES.get(program)
    return next((name for path, name in _SCRIPTS.items() if program.endswith(path)), None)


def _launch(argv: tuple[str, ...]) -> LauncherCommand | None:
    if _is_cli(argv):
        return LauncherCommand(
            launcher=Launcher.ACCELERATE,
            options={},
            program=f"trl/scripts/{argv[1]}.py",
            is_module=False,
            head=argv[:2],
            args=argv[2:],
        )
    launch = launchers.parse(argv)
    return launch if launch is not None and _command(launch) else None


def _method(invocation: Invocation) -> TrainingMethod:
    """Return the method of a command; a script of another name is taken for supervised."""
    command = _command(invocation.launch) if invocation.launch else None
    return COMMANDS[command or "sft"]


def _handed_on(settings: Settings) -> Mapping[str, str]:
    return {name: str(settings.get(name)) for name in _HANDED_ON if settings.has(name)}


@cache
def _coming_with_trl(name: str) -> Document | None:
    """Return accelerate's config that TRL ships under a name, in what decides over memory."""
    kinds: dict[str, dict[str, object]] = {
        "single_gpu": {"distributed_type": "NO"},
        "multi_gpu": {"distributed_type": "MULTI_GPU"},
        "fsdp1": {"distributed_type": "FSDP"},
        "fsdp2": {"distributed_type": "FSDP"},
        "zero1": {"zero_stage": 1, "gradient_accumulation_steps": 1},
        "zero2": {"zero_stage": 2},
        "zero3": {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True},
    }
    if name not in kinds:
        return None
    kind = kinds[name]
    if "zero_stage" in kind:
        kind = {"distributed_type": "DEEPSPEED", "deepspeed_config": kind}
    common_keys = {"num_machines": 1, "num_processes": _PROCESSES, "use_cpu": False}
    values = {"compute_environment": "LOCAL_MACHINE", **kind, "mixed_precision": "bf16"}
    text = yaml.safe_dump({**values, **common_keys}, sort_keys=False)
    return Document.parse(Source(path=name, text=text))


def _accelerate(settings: Settings, cwd: str, files: Mapping[str, str]) -> Document | None:
    """Return accelerate's config: a file of the user's, or one that comes with TRL."""
    name = _ACCELERATE.of(settings)
    if name is None:
        return None
    return Files.of(files).document(posixpath.join(cwd, name)) or _coming_with_trl(name)


def _without_activations(plan: Plan) -> Plan:
    return replace(plan, offload=plan.offload and plan.offload - {Offload.ACTIVATIONS})


_SYNCED_ADAPTER = Refusal(
    message="You passed `sync_ref_model=True` while using a PEFT model, which is currently not "
    "supported.",
    when=lambda settings, _, plan: bool(
        settings.get("sync_ref_model") and plan.tuning is Tuning.LORA
    ),
)


class Trl(TrainerAdapter):
    """TRL."""

    name = "trl"
    title = "TRL (trl sft, dpo, reward, kto, grpo, rloo)"
    marks = Marks(
        own=frozenset({"dataset_name", "datasets", "dataset_text_field", "use_peft"})
        | {"load_in_4bit", "load_in_8bit", "use_bnb_nested_quant"}
        | {"activation_offloading", "accelerate_config"},
        without=frozenset({"model", "base_model"}),
    )
    programs = ("trl",)
    python_packages = ("trl",)
    option = ("--config",)
    bindings = BINDINGS
    # A quantized base under ZeRO-3 is none of them: from 1.16 on TRL passes no device_map under
    # DeepSpeed, and transformers refuses that alone. The ladder does not stack the two.
    refusals = (
        *(QUANTIZED_ALONE, NO_ROWS, ZERO3_WITH_BATCH_SEARCH, hf.NO_METRIC, _SYNCED_ADAPTER),
        *(trl_methods.SYNCED_AND_PRECOMPUTED, trl_methods.ONE_SAMPLE),
        *trl_generation.REFUSALS,
    )
    rank = TRL_RANK

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return `trl COMMAND --config FILE`: the file's own command, else what its keys show.

        Raises:
            ConfigError: for a config that `trl sft` would misread, and that shows no one command.
        """
        if command:
            return super().command_for(source, document, command)
        return with_config(("trl", command_of(source, document)), *self.option, source.path)

    def training_method(self, job: Job) -> TrainingMethod:
        """Return the method of the command."""
        return _method(self.of_job(job))

    def known_to(self, job: Job) -> frozenset[str]:
        """Return the settings of the command, and the flags that it passes on."""
        launcher = {*_HANDED_ON, _ACCELERATE.name, accelerate.FILE}
        return super().known_to(job) | launcher

    def groups_of(self, job: Job) -> SettingGroups:
        """Return the settings of the command."""
        return TRL[self.training_method(job)]

    def tables(self) -> Mapping[str, SettingGroups]:
        """Return the settings of each command."""
        return {f"trl {name}": TRL[method] for name, method in COMMANDS.items()}

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return the effects of settings, and what is not known of generated rows."""
        return (*super().unmodelled(job), *trl_generation.not_known(job))

    def edit(self, invocation: Invocation, job: Job, plan: Plan) -> Settings:
        """Return the settings with the plan's fields, and as many completions generated at once."""
        return trl_generation.edited(super().edit(invocation, job, plan), job, plan)

    def unbound(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the fields that no single key holds."""
        return (*super().unbound(job, plan), "generation_batch")

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, and accelerate's."""
        settings = self.invocation(request.argv, request.source).settings
        name = _ACCELERATE.of(settings)
        own = (posixpath.join(request.cwd, name),) if name else ()
        return (*super().referenced_files(request), *own)

    def accelerate_config(
        self, invocation: Invocation, request: JobRequest
    ) -> Mapping[str, object]:
        """Return accelerate's config: a file of the user's, or one that TRL ships."""
        own = _accelerate(invocation.settings, request.cwd, request.files)
        return own.values if own else super().accelerate_config(invocation, request)

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line; `trl sft` passes some of its flags on to accelerate."""
        launch = _launch(argv)
        if launch is None:
            return None
        found = file_option(launch.head, launch.args, source, launch=launch)
        if not _is_cli(argv):
            return found
        return replace(found, launch=replace(launch, options=_handed_on(found.settings)))

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        job = super().read(request)
        invocation = self.of_job(job)
        settings = invocation.settings
        method = _method(invocation)
        batch = trl_generation.batch_of(settings, job.asked, job.world)
        job = replace(
            job,
            asked=trl_methods.requested(replace(job.asked, generation_batch=batch), method),
            compares_samples=trl_methods.compares_samples(method, settings),
            group=trl_generation.group_of(method, settings),
        )
        if job.asked.offload is None or not _ACTIVATIONS.of(settings):
            return job
        offload = job.asked.offload | {Offload.ACTIVATIONS}
        return replace(job, asked=replace(job.asked, offload=offload))

    def sharding(
        self, invocation: Invocation, request: JobRequest
    ) -> tuple[Sharding | None, frozenset[Offload] | None]:
        """Read sharding and offload: `deepspeed` in TRL's own config, else accelerate's."""
        settings = invocation.settings
        own = _accelerate(settings, request.cwd, request.files)
        missing = _ACCELERATE.of(settings) is not None and own is None
        return (None, None) if missing else super().sharding(invocation, request)

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks accelerate starts."""
        own = _accelerate(invocation.settings, request.cwd, request.files)
        if own is None:
            return super().world(invocation, request, device)
        return invocation.launch.world(request.gpus, own.values) if invocation.launch else World()

    def shard(
        self, invocation: Invocation, job: Job, plan: Plan, folder: str
    ) -> tuple[Invocation, tuple[File, ...]]:
        """Write sharding and offload: into accelerate's config, unless TRL's own states them."""
        settings, launch = invocation.settings, invocation.launch
        activations = Offload.ACTIVATIONS in (plan.offload or ())
        if activations is not _ACTIVATIONS.of(settings):
            settings = settings.set(_ACTIVATIONS.name, activations)
            invocation = replace(invocation, settings=settings)
        job = replace(job, asked=_without_activations(job.asked))
        plan = _without_activations(plan)
        if launch is None or not _is_cli((*invocation.head, "")) or hf.DEEPSPEED.of(settings):
            return super().shard(invocation, job, plan, folder)
        files: tuple[File, ...] = ()
        word = launch.options.get(accelerate.FILE)
        own = _accelerate(settings, job.cwd, job.files)
        if word:
            files = accelerate.edited_file(word, job, plan, folder)
        elif own is not None:
            files = accelerate.edited(own, job, plan, folder)
        elif not hf.zero_as_asked(job, plan):
            files = (accelerate.new_config(job, plan, folder),)
        if files:
            key = accelerate.FILE if word else _ACCELERATE.name
            invocation = replace(invocation, settings=settings.set(key, files[0].path))
        return invocation, files

    def data(self, job: Job) -> tuple[str, ...]:
        """Return the data set, or those of a mixture (`datasets`)."""
        mixture = in_entries(self.of_job(job).settings.get("datasets"))
        return in_folder(mixture, job.cwd) or super().data(job)

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        invocation = self.of_job(job)
        found = trl_memory_settings(invocation.settings, job)
        return trl_methods.memory_settings(found, _method(invocation), invocation.settings)

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Return TRL's own message for a plan that it refuses."""
        bare = replace(job, asked=_without_activations(job.asked))
        return super().refusal(bare, _without_activations(plan))
