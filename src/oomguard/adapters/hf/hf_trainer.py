"""Scripts on Hugging Face's Trainer: `python|torchrun|accelerate launch train.py --flags ...`.

Source: transformers 5.6.0, hf_argparser.py, trainer.py; trl 1.16.0, trainer/model_config.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import effects, fields, launchers
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.contract import Claim, JobRequest, Marks
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, flag
from oomguard.adapters.hf import heads
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.hf_memory import TRAINER_CODE, code_of_script
from oomguard.adapters.hf.liger import NOT_FUSED
from oomguard.adapters.hf.script_flags import unread_flags, unseen
from oomguard.adapters.hf.script_methods import (
    method_of_script,
    takes_trl_defaults,
    tuning_of_script,
)
from oomguard.adapters.hf.script_parser import own_flags
from oomguard.adapters.hf.script_values import code_flags, read_from_code, set_by_code
from oomguard.adapters.hf.trainer_adapter import (
    NO_ROWS,
    QUANTIZED_ALONE,
    ZERO3_WITH_BATCH_SEARCH,
    TrainerAdapter,
)
from oomguard.adapters.invocation import (
    CONFIG,
    CONFIG_SUFFIXES,
    Invocation,
    file_first,
    file_option,
    script,
)
from oomguard.adapters.settings.trainer_settings import EFFECTS
from oomguard.configfile import values
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import DeviceMap, Overlong, Plan, Quantization, Sharding, Tuning
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Job, World
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_LENGTHS = (
    *("max_length", "max_seq_length", "block_size", "model_max_length", "cutoff_len"),
    "max_source_length",
)
_WORKERS = ("preprocessing_num_workers", "dataset_num_proc")
#: Each setting as TRL's scripts name it, then as PEFT's examples/sft/train.py does.
_LOADS_4BIT = (flag("load_in_4bit"), flag("use_4bit_quantization"))
_LOADS_8BIT = (flag("load_in_8bit"), flag("use_8bit_quantization"))
_NESTEDS = (flag("use_bnb_nested_quant"), flag("use_nested_quant"))
_KIND = fields.text("bnb_4bit_quant_type", "nf4")
_DEVICE_MAP: Key[object] = Key(name="device_map", decode=values.anything, default=None)
_OWN_DEVICE = "cuda"  # transformers takes it for the device of LOCAL_RANK
_USES_LORA = ("use_peft", "use_lora", "use_peft_lora")
_RANKS = ("lora_r", "lora_rank")


def _tuning(settings: Settings) -> Tuning | None:
    stated = [key for key in _USES_LORA if settings.has(key)]
    if stated:
        return Tuning.LORA if any(flag(key).of(settings) for key in stated) else Tuning.FULL
    if any(settings.has(key) for key in _RANKS):
        return Tuning.LORA
    # The Trainer refuses to train a quantized model without an adapter: the script has one that no
    # flag shows.
    return Tuning.FULL if _quantization(settings) in (None, Quantization.NONE) else None


def _quantization_keys(settings: Settings) -> tuple[Key[bool], Key[bool], Key[bool]]:
    """Return the settings for 4 bits, 8 bits and nested quantization, as this script names them."""
    names = zip(_LOADS_4BIT, _LOADS_8BIT, _NESTEDS, strict=True)
    stated = (keys for keys in names if any(settings.has(key.name) for key in keys))
    return next(stated, (_LOADS_4BIT[0], _LOADS_8BIT[0], _NESTEDS[0]))


def _quantization(settings: Settings) -> Quantization | None:
    load_4bit, load_8bit, nested = _quantization_keys(settings)
    # Only a script that states --load_in_4bit is known to have it.
    if not settings.has(load_4bit.name):
        return Quantization.INT8 if load_8bit.of(settings) else None
    if load_8bit.of(settings):
        return Quantization.INT8
    # A script without --use_bnb_nested_quant has one 4-bit format, whichever it is.
    is_nested = nested.of(settings) or not settings.has(nested.name)
    four = hf.four_bit(_KIND.of(settings), is_nested)
    return four if load_4bit.of(settings) else Quantization.NONE


def _quantization_edits(settings: Settings, value: object) -> Edits | None:
    kind, nested = hf.spell_four_bit(value) or (None, False)
    load_4bit, load_8bit, nests = _quantization_keys(settings)
    wanted = {
        load_4bit: kind is not None,
        load_8bit: value is Quantization.INT8,
        **({nests: nested, _KIND: kind} if kind else {}),
    }
    edits = {key: setting for key, setting in wanted.items() if settings.has(key.name)}
    after = settings
    for key, setting in edits.items():
        after = after.set(key.name, setting)
    return edits if _quantization(after) is value else None


def _device_map(settings: Settings) -> DeviceMap | None:
    if not settings.has(_DEVICE_MAP.name):
        return None
    word = str(_DEVICE_MAP.of(settings) or "").lower()
    if word in ("", "none", "cpu"):
        return DeviceMap.HOST
    return DeviceMap.OWN if word == _OWN_DEVICE else DeviceMap.SHARED


def _device_map_edits(settings: Settings, value: object) -> Edits | None:
    own = value is DeviceMap.OWN and settings.has(_DEVICE_MAP.name)
    return {_DEVICE_MAP: _OWN_DEVICE} if own else None


BINDINGS = Bindings(
    bindings=(
        *hf.SHARED,
        fields.stated("sequence_length", *(fields.maybe_number(name) for name in _LENGTHS)),
        hf.checkpointing("gradient_checkpointing"),
        Binding(field="precision", read=hf.mixed_precision, edits=hf.precision_edits),
        Binding(field="quantization", read=_quantization, edits=_quantization_edits),
        Binding(field="tuning", read=_tuning, edits=lambda _, __: None),
        fields.stated("lora_rank", *(fields.maybe_number(name) for name in _RANKS)),
        hf.loss_kernel("use_liger_kernel"),
        fields.stated("low_cpu_mem_usage", flag("low_cpu_mem_usage")),
        Binding(field="device_map", read=_device_map, edits=_device_map_edits),
        # run_clm groups texts into blocks; what other scripts do with long samples is not known.
        Binding(
            field="overlong",
            read=lambda settings: Overlong.CHUNKED if settings.has("block_size") else None,
            edits=lambda _, __: None,
        ),
        fields.stated("preprocess_workers", *(fields.maybe_number(name) for name in _WORKERS)),
    )
)

ZERO3_WITH_DEVICE_MAP = Refusal(
    message="DeepSpeed Zero-3 is not compatible with passing a `device_map`.",
    when=lambda _, __, plan: plan.quantization in hf.ON_THE_FLY and plan.sharding is Sharding.ZERO3,
)
_ZERO3_WITH_LOW_CPU_MEM = Refusal(
    # transformers before 5; later ones ignore the argument
    message="DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True`",
    when=lambda _, __, plan: plan.sharding is Sharding.ZERO3 and plan.low_cpu_mem_usage is True,
)
REFUSALS = (
    hf.NO_METRIC,
    QUANTIZED_ALONE,
    ZERO3_WITH_DEVICE_MAP,
    _ZERO3_WITH_LOW_CPU_MEM,
    NO_ROWS,
    ZERO3_WITH_BATCH_SEARCH,
    NOT_FUSED,
)


def _script(invocation: Invocation, cwd: str) -> str | None:
    """Return the path of the script, absolute; None for a module."""
    launch = invocation.launch
    if launch is None or launch.is_module or not launch.program.endswith(".py"):
        return None
    return posixpath.join(cwd, launch.program)


_YAML = (".yaml", ".yml")
#: Keys of the configs of other frameworks, whose own scripts may be copied under any name.
_FOREIGN = frozenset({"finetuning_type", "base_model", "checkpoint_dir", "tuner_type"})


def _check_arguments(source: Source, claim: Claim) -> None:
    """Raise for a config of another framework, or of a script's own.

    Raises:
        ConfigError: with the key that shows it.
    """
    foreign = next((key for key in source.document.values if key in _FOREIGN), None)
    if foreign is None and claim is not Claim.NO:
        return
    what = f"states {foreign}" if foreign else "states none of the Trainer's arguments"
    raise ConfigError(
        f"the script's config {what}: it is not read by HfArgumentParser",
        where=source.document.where(foreign) if foreign else Where(file=source.path),
        next_step="Start a framework's own config by its own command, or pass the settings of "
        "the script as flags.",
    )


def _program(invocation: Invocation) -> str:
    """Return the name of the script's file."""
    return posixpath.basename(invocation.launch.program) if invocation.launch else ""


class HFTrainer(TrainerAdapter):
    """Any script on the Trainer; adapters of one such script state their difference."""

    name = "hf_trainer"
    title = "Hugging Face Trainer script"
    takes_flat_files = True
    # dataset_mixture is no setting of trl sft, whose name for it is `datasets`: scripts have it.
    marks = Marks(own=frozenset({"dataset_mixture"}), shared=hf.ARGUMENTS)
    bindings = BINDINGS
    refusals: tuple[Refusal, ...] = REFUSALS
    effects = (
        *EFFECTS,
        effects.Effect(
            key="tp_size",
            effect="tensor parallelism is not modelled: the model counts as whole on every GPU",
            direction=Direction.LESS,
        ),
        effects.switch("use_unsloth", "Unsloth's kernels are not modelled", Direction.EITHER),
    )

    def of_job(self, job: Job) -> Invocation:
        """Return the command line of a job, parsed, with what the script's code sets."""
        return self._with_code(super().of_job(job), job.files, job.cwd)

    def _with_code(self, invocation: Invocation, files: Mapping[str, str], cwd: str) -> Invocation:
        """Add what the script's code sets where no flag states it."""
        if self.training_code is not TRAINER_CODE:
            return invocation
        code = files.get(_script(invocation, cwd) or "", "")
        settings = invocation.settings
        found = code_flags(code, settings)
        hangs = any(name in code for name in _USES_LORA)  # an adapter that a flag switches on
        if hangs and not any(settings.has(name) for name in _USES_LORA):
            for name in _RANKS:
                found = found.delete(name)
        return replace(invocation, settings=replace(settings, code=found))

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the fields of the requested plan."""
        with_code = self._with_code(invocation, request.files, request.cwd)
        return super().fields(with_code, request, world)

    def read(self, request: JobRequest) -> Job:
        """Read the job; the code may show an adapter that no flag does."""
        job = super().read(request)
        states = any(self.of_job(job).settings.has(key) for key in (*_USES_LORA, *_RANKS))
        if self.training_code is not TRAINER_CODE or states or job.asked.tuning is not Tuning.FULL:
            return job
        tuning = tuning_of_script(self._code(job), (*_USES_LORA, *_RANKS))
        return replace(job, asked=replace(job.asked, tuning=tuning))

    def of_model(
        self, job: Job, model_type: str | None, stored_as: StoredFormat | None = None
    ) -> Job:
        """Return the job of a model of this type; a quantized one gets an adapter, if not shown."""
        job = super().of_model(job, model_type, stored_as)
        settings = self.of_job(job).settings
        states = any(settings.has(key) for key in _USES_LORA)
        if job.stored_as is None or states or job.asked.tuning is Tuning.LORA:
            return job
        return replace(job, asked=replace(job.asked, tuning=None))

    def training_method(self, job: Job) -> TrainingMethod | None:
        """Return the method that the script's flags, code or name show; supervised otherwise."""
        invocation = self.of_job(job)
        return method_of_script(_program(invocation), invocation.settings, self._code(job))

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what decides the memory; a classifier has scores in place of logits."""
        found = super().memory_settings(job)
        if self.training_code is TRAINER_CODE:
            found = replace(found, code=code_of_script(self._code(job)) or TRAINER_CODE)
        if self.training_method(job) is not TrainingMethod.CLASSIFICATION:
            return found
        return heads.classifier(found, self.of_job(job).settings)

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Add what the script's own code decides and its flags do not show."""
        found = super().unmodelled(job)
        if takes_trl_defaults(self._code(job), self.of_job(job).settings):
            effect = (
                "TRL's configs compute in bf16 and checkpoint by default: what no flag states is "
                "counted by the Trainer's defaults"
            )
            own = Unmodelled(key="script", effect=effect, direction=Direction.EITHER)
            found = (*found, own)
        if self.training_code is TRAINER_CODE:
            settings, code = self.of_job(job).settings, self._code(job)
            quantizes = job.asked.quantization not in (None, Quantization.NONE)
            hidden = unseen(_program(self.of_job(job)), code, quantizes=quantizes)
            found = (*found, *unread_flags(settings, code), *set_by_code(settings, code), *hidden)
        quantizes = job.asked.quantization in hf.ON_THE_FLY
        is_known = self.training_code is not TRAINER_CODE or code_of_script(self._code(job))
        if is_known or not quantizes:
            return found
        effect = (
            "its code does not show whether it calls prepare_model_for_kbit_training: counted as "
            "if it did, with all that is not quantized in fp32"
        )
        return (*found, Unmodelled(key="script", effect=effect, direction=Direction.LESS))

    def notes(self, job: Job) -> tuple[str, ...]:
        """Return what was read from the script's code."""
        note = read_from_code(self.of_job(job).settings, self._code(job))
        return (note,) if note else ()

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Return the framework's message for a plan, or which of its flags the script ends at."""
        said = super().refusal(job, plan)
        own = self._own_flags(job)
        if said is not None or own is None:
            return said
        before, after = (self._flags(job, one) for one in (job.asked, plan))
        unknown = [flag for flag in after if flag not in (*before, *own)]
        return f"the script does not take {', '.join(unknown)}" if unknown else None

    def warnings(self, job: Job) -> tuple[str, ...]:
        """Return a warning for a script that does not take the Trainer's flag for its batch."""
        own = self._own_flags(job)
        batch = f"--{hf.MICRO_BATCH.name}"
        if own is None or batch in own:
            return ()
        flags, invocation = ", ".join(own) or "none", self.of_job(job)
        takes_not = f"{_program(invocation)} does not take {batch} (its own flags: {flags}): its "
        if invocation.settings.code.has(hf.MICRO_BATCH.name):
            return (f"{takes_not}batch of {job.asked.micro_batch} is read and left as it is",)
        default = f"{job.asked.micro_batch}, the Trainer's default"
        return (f"{takes_not}batch is not known and cannot be changed; {default}, stands for it",)

    def _own_flags(self, job: Job) -> tuple[str, ...] | None:
        """Return all flags that the script takes; None where it may take others."""
        return own_flags(self._code(job)) if self.training_code is TRAINER_CODE else None

    def _flags(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the flags on the command line of a plan."""
        words = self.write(job, plan, "/attempt").argv
        return tuple(word.partition("=")[0] for word in words if word.startswith("--"))

    def _code(self, job: Job) -> str:
        """Return the text of the script; empty if it cannot be read."""
        return job.files.get(_script(self.of_job(job), job.cwd) or "", "")

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the configs, and the script, whose code shows what it trains."""
        invocation = self.invocation(request.argv, request.source)
        path = _script(invocation, request.cwd)
        return (*super().referenced_files(request), *([path] if path else ()))

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation | None:
        """Parse a command line: flags, a `.json` alone, `--config`, or a file turned into flags.

        `--config` is TrlParser's; what it names is read only if it states the Trainer's arguments.
        A YAML file before all flags is what HfArgumentParser's scripts read.

        Raises:
            ConfigError: if such a file states none of the Trainer's arguments.
        """
        launch = launchers.parse(argv)
        if launch and launch.args and launch.args[0].endswith(_YAML):
            if source is not None:
                _check_arguments(source, self.marks.claim(source.document.values))
            return file_first(launch.head, launch.args, source, launch=launch)
        name = Flags(args=launch.args).get(CONFIG) if launch else None
        if launch is None or not isinstance(name, str) or not name.endswith(CONFIG_SUFFIXES):
            return script(argv, source)
        is_its = source is not None and self.marks.claim(source.document.values) is not Claim.NO
        return file_option(launch.head, launch.args, source if is_its else None, launch=launch)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim any Python script or module as SHARED: another adapter's claim comes first."""
        launch = launchers.parse(argv)
        if launch is None:
            return Claim.NO
        return Claim.SHARED if launch.is_module or launch.program.endswith(".py") else Claim.NO

    def command_for(
        self, source: Source, document: Mapping[str, object], command: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the file's own command; a JSON goes to the script, other files become its flags.

        Raises:
            ConfigError: if the file has no command.
        """
        if not command:
            raise ConfigError(
                "the file does not say which script it is for",
                where=Where(file=source.path),
                next_step="Pass the whole command after --, or add to the file: "
                "oomguard: {command: [python, train.py]}",
            )
        return (*command, source.path) if source.path.endswith(".json") else command
