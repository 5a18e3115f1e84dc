"""Scripts on Hugging Face's Trainer: `python|torchrun|accelerate launch train.py --flags ...`.

Source: transformers 5.6.0, hf_argparser.py, trainer.py; trl 1.16.0, trainer/model_config.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters import allocator_env, common, fields, launchers, trial
from oomguard.adapters.common import Refusal
from oomguard.adapters.contract import Adapter, Claim, JobRequest, Marks
from oomguard.adapters.fields import Binding, Bindings, Edits, Key, as_object, flag
from oomguard.adapters.hf import accelerate, resuming
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.deepspeed import ZERO
from oomguard.adapters.hf.hf_memory import recipe_of
from oomguard.adapters.invocation import Invocation, args_file, split
from oomguard.adapters.launchers import Launcher, LauncherCommand
from oomguard.configfile.document import Source
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, Where
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import Command, File
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import (
    DeviceMap,
    EmbeddingRows,
    Offload,
    Overlong,
    Plan,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job, World

ENVIRONMENT = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"),
)
_LENGTHS = (
    *("max_length", "max_seq_length", "block_size", "model_max_length", "cutoff_len"),
    "max_source_length",
)
_WORKERS = ("preprocessing_num_workers", "dataset_num_proc")
_LOAD_4BIT, _LOAD_8BIT = flag("load_in_4bit"), flag("load_in_8bit")
_NESTED = flag("use_bnb_nested_quant")
_KIND = fields.text("bnb_4bit_quant_type", "nf4")
_DEVICE_MAP: Key[object] = Key(name="device_map", decode=fields.anything, default=None)
_OWN_DEVICE = "cuda"  # transformers takes it for the device of LOCAL_RANK
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


def _device_map(settings: Settings) -> DeviceMap | None:
    if not settings.has(_DEVICE_MAP.name):
        return None
    word = str(_DEVICE_MAP.of(settings) or "").lower()
    if word in ("", "none", "cpu"):
        return DeviceMap.HOST
    return DeviceMap.OWN if word == _OWN_DEVICE else DeviceMap.SHARED


def _device_map_edits(settings: Settings, value: object) -> Edits | None:
    own = value is DeviceMap.OWN and settings.has(_DEVICE_MAP.name)
    return {as_object(_DEVICE_MAP): _OWN_DEVICE} if own else None


KNOBS = Bindings(
    knobs=(
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

QUANTIZED_ALONE = Refusal(
    message="You cannot perform fine-tuning on purely quantized models.",
    when=lambda _, __, plan: plan.quantization in hf.ON_THE_FLY and plan.tuning is Tuning.FULL,
)
ZERO3_WITH_DEVICE_MAP = Refusal(
    message="DeepSpeed Zero-3 is not compatible with passing a `device_map`.",
    when=lambda _, __, plan: plan.quantization in hf.ON_THE_FLY and plan.sharding is Sharding.ZERO3,
)
ZERO3_WITH_BATCH_SEARCH = Refusal(
    message="`auto_find_batch_size` isn't supported yet with DeepSpeed Zero-3.",
    when=lambda _, __, plan: plan.sharding is Sharding.ZERO3 and plan.auto_find_batch_size is True,
)
NO_ROWS = Refusal(
    message="no setting of this job reaches PEFT's trainable_token_indices, which would train the "
    "new rows alone",
    when=lambda _, __, plan: plan.embedding_rows is EmbeddingRows.NEW,
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
)


def _distributed(launch: LauncherCommand, ranks: int, python: str) -> tuple[str, ...]:
    """Put torchrun before a program that `python` starts: DeepSpeed wants a process group."""
    options = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    before = launch.head[: -2 if launch.is_module else -1] or (python,)
    return (*before, *options, *(("-m",) if launch.is_module else ()), launch.program)


def _named(launch: LauncherCommand, option: str, files: tuple[File, ...]) -> tuple[str, ...]:
    """Return the head of a command with the first file as the launcher's option."""
    return Flags(words=launch.head).set(option, files[0].path).words if files else launch.head


class HFTrainer(Adapter):
    """Scripts on Hugging Face's Trainer; adapters of one such script state their difference."""

    name = "hf_trainer"
    title = "Hugging Face Trainer script"
    marks = Marks(shared=hf.ARGUMENTS)
    knobs: Bindings = KNOBS
    refusals: tuple[Refusal, ...] = REFUSALS
    environment: tuple[str, ...] = ENVIRONMENT
    output: Key[str] = hf.OUTPUT_DIR
    #: Where the script can switch to LoRA by itself: the key of the rank that it then takes.
    rank: Key[int] | None = None

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim any Python script or module as SHARED: it is the Trainer's if nobody else's."""
        launch = launchers.parse(argv)
        if launch is None or (launch.words and launch.words[0].endswith((".yaml", ".yml"))):
            return Claim.NO
        return Claim.SHARED if launch.is_module or launch.program.endswith(".py") else Claim.NO

    def command_for(
        self,
        source: Source,
        document: Mapping[str, object],
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
        """Return the `.json` that is a script's only word."""
        launch = launchers.parse(argv)
        return args_file(launch) if launch else None

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, accelerate's, and the one that accelerate's names."""
        invocation = self.split(request.argv, request.source)
        files = (
            self._zero_file(invocation, request),
            common.launch_config(invocation.launch, request),
        )
        return tuple(path for path in files if path)

    def accelerate_config(self, invocation: Invocation, request: JobRequest) -> str:
        """Return the text of accelerate's config; empty where there is none."""
        return common.launch_text(invocation.launch, request)

    def _zero_file(self, invocation: Invocation, request: JobRequest) -> str | None:
        """Return the DeepSpeed file (absolute), wherever it is named."""
        if hf.DEEPSPEED.of(invocation.settings):
            return hf.deepspeed_path(invocation.settings, request.cwd)
        config = self.accelerate_config(invocation, request)
        return common.launch_zero(invocation.launch, request, config)

    def split(self, argv: tuple[str, ...], source: Source | None) -> Invocation:
        """Take a command line apart."""
        return split(argv, source)

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        invocation = self.split(request.argv, request.source)
        settings = invocation.settings
        device = hf.device(settings, request.gpus)
        fields = self.knobs.read(settings)
        zero = request.files.get(self._zero_file(invocation, request) or "")
        own = hf.zero_optimizer(settings, zero)
        fields["optimizer"] = own or fields["optimizer"]
        fields["sharding"], fields["offload"] = self.sharding(invocation, request)
        if device is not Device.CPU:
            fields["allocator"] = allocator_env.allocator_of(request.env)
        job = Job(
            framework=self.name,
            argv=invocation.argv(invocation.launch.head, settings, invocation.config),
            cwd=request.cwd,
            config=request.source,
            asked=Plan(**fields),  # type: ignore[arg-type]  # each knob reads its field's type
            world=self.world(invocation, request, device),
            device=device,
            env=common.launch_env(request.env, self.environment),
            python=request.python,
            packages=request.packages,
            output_dir=posixpath.join(request.cwd, self.output.of(settings)),
            files=dict(request.files),
        )
        return self._with_embeddings(job)

    def _with_embeddings(self, job: Job) -> Job:
        """Return the matrices over the vocabulary that are trained in full beside an adapter."""
        lora = self.memory_settings(job).lora
        names = lora.trained_embeddings if lora else ()
        rows = EmbeddingRows.ALL if names else None
        return replace(job, asked=replace(job.asked, embedding_rows=rows), trained_embeddings=names)

    def sharding(
        self, invocation: Invocation, request: JobRequest
    ) -> tuple[Sharding | None, frozenset[Offload] | None]:
        """Read sharding and offload: the trainer's own DeepSpeed config, else accelerate's."""
        settings, launch = invocation.settings, invocation.launch
        stated = hf.DEEPSPEED.of(settings) or hf.FSDP.of(settings)
        if stated or launch.launcher is not Launcher.ACCELERATE:
            return hf.sharding(settings, request.cwd, request.files)
        return common.launch_sharding(launch, request, self.accelerate_config(invocation, request))

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks the job has."""
        if invocation.launch.launcher is not Launcher.PYTHON:
            return common.launched_world(invocation.launch, request)
        # Without a launcher the Trainer spreads each batch over all GPUs by nn.DataParallel,
        # unless the script has spread the model over them.
        if self.knobs.read(invocation.settings).get("device_map") is DeviceMap.SHARED:
            return World()
        return World(per_node=max(1, request.gpus) if device is Device.CUDA else 1)

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set the script's own rank on a plan that switches LoRA on, and none on one without it."""
        if self.rank is None or plan.tuning is job.asked.tuning:
            return plan
        if plan.tuning is not Tuning.LORA:
            return replace(plan, lora_rank=None, embedding_rows=None)
        rank = self.rank.of(self.split(job.argv, job.config).settings)
        as_lora = replace(job, asked=replace(plan, lora_rank=plan.lora_rank or rank))
        return self._with_embeddings(as_lora).asked

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the Trainer's checkpoints."""
        return resuming.layout(job, self.split(job.argv, job.config).settings)

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives."""
        settings = self.split(job.argv, job.config).settings
        return resuming.resume_mode(settings, before, after, packs=bool(settings.get("packing")))

    def write(
        self, job: Job, plan: Plan, folder: str, begins: Continuation | None = None
    ) -> Command:
        """Return the user's command, its flags or the copy of its config edited."""
        invocation = self.split(job.argv, job.config)
        settings = resuming.resumed(self.edit(invocation.settings, job, plan), begins)
        settings = resuming.saving(settings, job)
        head, settings, files = self.shard(invocation, settings, job, plan, folder)
        copy = common.config_copy(settings, folder)
        config = copy[0].path if copy else None
        return Command(
            argv=invocation.argv(head, settings, config),
            cwd=job.cwd,
            env={**common.attempt_env(job, plan), **resuming.handed_over(begins)},
            files=(*files, *copy),
            config=config,
        )

    def as_trial(self, job: Job, folder: str) -> Job:
        """Return the job as one to try."""
        invocation = self.split(job.argv, job.config)
        settings = self.quiet(invocation.settings, folder)
        argv = invocation.argv(invocation.launch.head, settings, invocation.config)
        return trial.with_settings(job, settings, argv, folder)

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Have nothing saved, tracked or evaluated, and the rest written into a folder."""
        return trial.trainer(settings, folder, self.output.name)

    def edit(self, settings: Settings, job: Job, plan: Plan) -> Settings:
        """Write the fields that keys hold."""
        return self.knobs.apply(settings, job, plan)

    def shard(
        self, invocation: Invocation, settings: Settings, job: Job, plan: Plan, folder: str
    ) -> tuple[tuple[str, ...], Settings, tuple[File, ...]]:
        """Write sharding and offload where the job has them; give head, settings and files."""
        launch = invocation.launch
        own = common.own_launch_config(launch, job)
        word = launch.options.get(accelerate.FILE)
        if word and not hf.DEEPSPEED.of(settings):
            files = accelerate.edited_file(word, job, plan, folder)
            return _named(launch, accelerate.FILE, files), settings, files
        if own is not None and not hf.DEEPSPEED.of(settings):
            files = accelerate.edited(own, job, plan, folder)
            return _named(launch, "config_file", files), settings, files
        settings, files = hf.with_zero_file(settings, job, plan, folder)
        if launch.launcher is Launcher.PYTHON and files and job.asked.sharding not in ZERO:
            return _distributed(launch, job.world.size, job.python), settings, files
        return launch.head, settings, files

    def memory_settings(self, job: Job) -> MemorySettings:
        """Read what the flags say of memory beyond the plan."""
        return recipe_of(self.split(job.argv, job.config).settings, job)

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Say the Trainer's own message for a plan that it refuses."""
        invocation = self.split(job.argv, job.config)
        settings = invocation.settings
        return (
            common.first_refusal(self.refusals, settings, job, plan)
            or hf.refuses_sharding(job, plan)
            or accelerate.refusal(invocation.launch.options, job, plan)
            or self.knobs.unwritable(settings, job, plan, elsewhere=self._elsewhere(job, plan))
        )

    def _elsewhere(self, job: Job, plan: Plan) -> tuple[str, ...]:
        switched = self.rank is not None and plan.tuning is not job.asked.tuning
        return (*hf.ELSEWHERE, *(("lora_rank", "embedding_rows") if switched else ()))

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Name deepspeed, bitsandbytes and liger_kernel where the plan brings them in."""
        return hf.packages(plan) - hf.packages(job.asked)
