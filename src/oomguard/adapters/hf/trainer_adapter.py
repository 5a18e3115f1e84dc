"""`TrainerAdapter`: what all frameworks on Hugging Face's Trainer share.

Checkpoints, DeepSpeed's and accelerate's configs, the launcher, LoRA that is switched on.
Source: transformers 5.6.0, trainer.py, hf_argparser.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace

from oomguard.adapters.config_adapter import ConfigAdapter, Refusal
from oomguard.adapters.contract import JobRequest
from oomguard.adapters.effects import Effect
from oomguard.adapters.fields import Key
from oomguard.adapters.hf import accelerate, deepspeed, liger, resuming
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.hf_memory import TRAINER_CODE, memory_settings_of
from oomguard.adapters.invocation import Invocation, script
from oomguard.adapters.launchers import Launcher
from oomguard.adapters.settings.accelerate_settings import ACCELERATE
from oomguard.adapters.settings.blocks import unmodelled_inside
from oomguard.adapters.settings.deepspeed_settings import DEEPSPEED
from oomguard.adapters.settings.fsdp_settings import unmodelled_of_fsdp
from oomguard.adapters.settings.trainer_settings import EFFECTS
from oomguard.adapters.trial import trainer
from oomguard.configfile.document import Files, Source
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.command import File
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import (
    ZERO,
    DeviceMap,
    EmbeddingRows,
    LossKernel,
    Offload,
    Plan,
    Sharding,
    Tuning,
)
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Device, Job, World
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

FSDP_CONFIG = "fsdp_config"
ENVIRONMENT = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"),
)
QUANTIZED_ALONE = Refusal(
    message="You cannot perform fine-tuning on purely quantized models.",
    when=lambda _, job, plan: (
        plan.tuning is Tuning.FULL
        and (job.stored_as is not None or plan.quantization in hf.ON_THE_FLY)
    ),
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


#: Settings that only one method's trainer has, whatever script starts it (trl 1.16, trainer/*.py).
METHOD_SETTINGS = {
    TrainingMethod.GRPO: ("reward_funcs", "num_generations"),
    TrainingMethod.KTO: ("desirable_weight",),
    TrainingMethod.DPO: ("precompute_ref_log_probs",),
}


class TrainerAdapter(ConfigAdapter):
    """A framework on the Trainer.

    `rank` is the key of the LoRA rank if it can switch to LoRA. `fuses` are the types of models
    whose loss its fused kernels replace; `dequantizes` the formats of checkpoints that it loads in
    16 bits, by transformers' names; `fsdp_files` the settings that may name a file with FSDP's
    options.
    """

    divides = True
    environment: tuple[str, ...] = ENVIRONMENT
    elsewhere: tuple[str, ...] = hf.ELSEWHERE
    output = hf.OUTPUT_DIR
    training_code = TRAINER_CODE
    effects: tuple[Effect, ...] = EFFECTS
    rank: Key[int] | None = None
    fuses: frozenset[str] = liger.FUSED
    dequantizes: frozenset[str] = frozenset()
    fsdp_files: tuple[str, ...] = (FSDP_CONFIG,)
    usage = "Write python, torchrun, accelerate launch or deepspeed, then the script."

    def invocation(self, argv: tuple[str, ...], source: Source | None) -> Invocation:
        """Return the parsed command line; with --framework it may be any script."""
        found = self.split(argv, source) or script(argv, source)
        return found or super().invocation(argv, source)

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the DeepSpeed file, accelerate's, and the one that accelerate's names."""
        invocation = self.invocation(request.argv, request.source)
        files = (
            self._zero_path(invocation, request),
            _launch_path(invocation, request.cwd),
            *(hf.file_named(invocation.settings.get(key), request.cwd) for key in self.fsdp_files),
        )
        return tuple(path for path in files if path)

    def accelerate_config(
        self, invocation: Invocation, request: JobRequest
    ) -> Mapping[str, object]:
        """Return the values of accelerate's config; empty if there is none."""
        path = _launch_path(invocation, request.cwd)
        document = Files.of(request.files).document(path)
        return document.values if document else {}

    def _zero_path(self, invocation: Invocation, request: JobRequest) -> str | None:
        """Return the DeepSpeed file (absolute), wherever it is named."""
        settings, launch = invocation.settings, invocation.launch
        if hf.DEEPSPEED.of(settings):
            return hf.deepspeed_path(settings, request.cwd)
        if launch is None or launch.launcher is not Launcher.ACCELERATE:
            return None
        config = self.accelerate_config(invocation, request)
        name = accelerate.deepspeed_file(launch.options, config)
        return posixpath.join(request.cwd, name) if name else None

    def read(self, request: JobRequest) -> Job:
        """Read the job."""
        return self._with_embeddings(super().read(request))

    def unmodelled(self, job: Job) -> tuple[Unmodelled, ...]:
        """Return the effects of settings, and of keys in DeepSpeed's config and accelerate's."""
        invocation = self.of_job(job)
        request = JobRequest(
            argv=job.argv, cwd=job.cwd, source=job.config, env=job.env, files=job.files
        )
        path = self._zero_path(invocation, request)
        inline = deepspeed.mapping_of(hf.DEEPSPEED.of(invocation.settings))
        zero = deepspeed.config_in(job.files, path) if path else inline
        missing = Unmodelled(
            key=hf.DEEPSPEED.name,
            effect="its config was not found: counted without sharding",
            direction=Direction.LESS,
        )
        launch = dict(self.accelerate_config(invocation, request))
        shared, checkpoints = launch.pop(FSDP_CONFIG, None), job.asked.checkpointing is True
        return (
            *super().unmodelled(job),
            *((missing,) if job.asked.sharding is None else ()),
            *self._unread_launch(invocation, request),
            *unmodelled_inside(hf.DEEPSPEED.name, zero or {}, DEEPSPEED),
            *unmodelled_inside("accelerate", launch, ACCELERATE),
            *unmodelled_of_fsdp(f"accelerate.{FSDP_CONFIG}", shared, checkpoints=checkpoints),
            *self._unmodelled_of_fsdp(job, request),
        )

    def _unread_launch(self, invocation: Invocation, request: JobRequest) -> Iterator[Unmodelled]:
        """Yield that accelerate's own config was not found."""
        path = _launch_path(invocation, request.cwd)
        if path is not None and Files.of(request.files).document(path) is None:
            yield Unmodelled(
                key="config_file",
                effect="accelerate's config was not found: sharding, ranks and precision that it "
                "states are not known",
                direction=Direction.EITHER,
            )

    def _unmodelled_of_fsdp(self, job: Job, request: JobRequest) -> Iterator[Unmodelled]:
        """Yield what the job's own FSDP config says, whatever file or mapping holds it."""
        if job.asked.sharding is not Sharding.FSDP:
            return
        settings, checkpoints = self.of_job(job).settings, job.asked.checkpointing is True
        for key, values in self.fsdp_configs(settings, request).items():
            if values is None:
                yield Unmodelled(
                    key=key,
                    effect="FSDP's own options are in a file that was not found",
                    direction=Direction.EITHER,
                    line=settings.origin(key).line,
                )
            for one in unmodelled_of_fsdp(key, values, checkpoints=checkpoints):
                yield replace(one, line=settings.origin(one.key).line)

    def fsdp_configs(
        self, settings: Settings, request: JobRequest
    ) -> dict[str, Mapping[str, object] | None]:
        """Return FSDP's options by the setting that holds them; None for a file not found."""
        stated = settings.get(FSDP_CONFIG)
        if not stated or not hf.FSDP.of(settings):
            return {}
        return {FSDP_CONFIG: hf.config_stated(stated, request.files, request.cwd)}

    def fields(
        self, invocation: Invocation, request: JobRequest, world: World
    ) -> dict[str, object]:
        """Return the fields of the requested plan."""
        fields = super().fields(invocation, request, world)
        zero = deepspeed.config_in(request.files, self._zero_path(invocation, request))
        sharding, offload = self.sharding(invocation, request)
        own = hf.zero_optimizer(invocation.settings, zero) or fields["optimizer"]
        return {**fields, "optimizer": own, "sharding": sharding, "offload": offload}

    def of_model(
        self, job: Job, model_type: str | None, stored_as: StoredFormat | None = None
    ) -> Job:
        """Return the job of a model of this type.

        A fused loss that it does not get is plain. A checkpoint that is quantized already keeps its
        format, whatever the settings ask for.
        """
        if stored_as is not None and stored_as.method in self.dequantizes:
            stored_as = None
        job, asked = super().of_model(job, model_type, stored_as), job.asked
        fused = asked.loss_kernel is LossKernel.FUSED
        if fused and model_type is not None and model_type not in self.fuses:
            asked = replace(asked, loss_kernel=LossKernel.EAGER)
        if stored_as is not None:
            asked = replace(asked, quantization=stored_as.quantization)
        return replace(job, asked=asked)

    def _with_embeddings(self, job: Job) -> Job:
        """Add the matrices over the vocabulary that are trained in full besides an adapter."""
        lora = self.memory_settings(job).lora
        names = lora.trained_embeddings if lora else ()
        rows = EmbeddingRows.ALL if names else None
        return replace(job, asked=replace(job.asked, embedding_rows=rows), trained_embeddings=names)

    def sharding(
        self, invocation: Invocation, request: JobRequest
    ) -> tuple[Sharding | None, frozenset[Offload] | None]:
        """Read sharding and offload: the trainer's own DeepSpeed config, else accelerate's."""
        settings, launch = invocation.settings, invocation.launch
        own = hf.DEEPSPEED.of(settings) or hf.FSDP.of(settings)
        if own or launch is None or launch.launcher is not Launcher.ACCELERATE:
            return hf.sharding(settings, request.cwd, request.files)
        zero = deepspeed.config_in(request.files, self._zero_path(invocation, request))
        return accelerate.sharding(
            launch.options, self.accelerate_config(invocation, request), zero
        )

    def device(self, settings: Settings, gpus: int) -> Device:
        """Return where the job computes."""
        return Device.CPU if gpus == 0 or hf.USE_CPU.of(settings) else Device.CUDA

    def world(self, invocation: Invocation, request: JobRequest, device: Device) -> World:
        """Return how many ranks the job has."""
        launch = invocation.launch
        if launch is not None and launch.launcher is not Launcher.PYTHON:
            return launch.world(request.gpus, self.accelerate_config(invocation, request))
        # Without a launcher the Trainer spreads each batch over all GPUs by nn.DataParallel,
        # unless the script has spread the model over them.
        if self.bindings.read(invocation.settings).get("device_map") is DeviceMap.SHARED:
            return World()
        return World(per_node=max(1, request.gpus) if device is Device.CUDA else 1)

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set the framework's own rank on a plan that switches LoRA on, none on one without it."""
        if self.rank is None or plan.tuning is job.asked.tuning:
            return plan
        if plan.tuning is not Tuning.LORA:
            return replace(plan, lora_rank=None, embedding_rows=None)
        rank = self.rank.of(self.of_job(job).settings)
        as_lora = replace(job, asked=replace(plan, lora_rank=plan.lora_rank or rank))
        return self._with_embeddings(as_lora).asked

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the Trainer's checkpoints."""
        return resuming.layout(job, self.of_job(job).settings)

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives."""
        settings = self.of_job(job).settings
        return resuming.resume_mode(settings, before, after, packs=self.packs(settings))

    def packs(self, settings: Settings) -> bool:
        """Return whether the length decides which samples there are: they are packed."""
        return bool(settings.get("packing"))

    def resumed(self, settings: Settings, job: Job, begins: Continuation | None) -> Settings:
        """Return the settings with the checkpoint to resume from, and those that are saved."""
        return resuming.saving(resuming.resumed(settings, begins), job)

    def env(self, job: Job, plan: Plan, begins: Continuation | None) -> dict[str, str]:
        """Return the environment of an attempt; the monitor passes the checkpoint to the script."""
        return {**super().env(job, plan, begins), **resuming.handed_over(begins)}

    def quiet(self, settings: Settings, folder: str) -> Settings:
        """Return the settings of a trial."""
        return trainer(settings, folder, self.output.name)

    def shard(
        self, invocation: Invocation, job: Job, plan: Plan, folder: str
    ) -> tuple[Invocation, tuple[File, ...]]:
        """Write sharding and offload where the job has them."""
        settings, launch = invocation.settings, invocation.launch
        if launch is not None and not hf.DEEPSPEED.of(settings):
            word = launch.options.get(accelerate.FILE)
            own = Files.of(job.files).document(_launch_path(invocation, job.cwd))
            if word:
                files = accelerate.edited_file(word, job, plan, folder)
                return _with_option(invocation, accelerate.FILE, files), files
            if own is not None:
                files = accelerate.edited(own, job, plan, folder)
                return _with_option(invocation, "config_file", files), files
        settings, files = hf.with_zero_file(settings, job, plan, folder)
        invocation = replace(invocation, settings=settings)
        python = launch is not None and launch.launcher is Launcher.PYTHON
        if python and files and job.asked.sharding not in ZERO:
            invocation = _distributed(invocation, job.world.size, job.python)
        return invocation, files

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        return memory_settings_of(self.of_job(job).settings, job, self.training_code)

    def refuses_sharding(self, invocation: Invocation, job: Job, plan: Plan) -> str | None:
        """Return why the plan's sharding or offload cannot be written, None if it can."""
        options = invocation.launch.options if invocation.launch else {}
        return hf.refuses_sharding(job, plan) or accelerate.refusal(options, job, plan)

    def unbound(self, job: Job, plan: Plan) -> tuple[str, ...]:
        """Return the fields that no key has to hold; those of LoRA come with the switch to it."""
        switched = self.rank is not None and plan.tuning is not job.asked.tuning
        return (*self.elsewhere, *(("lora_rank", "embedding_rows") if switched else ()))

    def refusal(self, job: Job, plan: Plan) -> str | None:
        """Return the framework's own message; no setting changes how a checkpoint is stored."""
        if job.stored_as is not None and plan.quantization is not job.asked.quantization:
            return f"the checkpoint is quantized already ({job.stored_as.described})"
        return super().refusal(job, plan)

    def required_packages(self, job: Job, plan: Plan) -> frozenset[str]:
        """Return deepspeed, bitsandbytes and liger_kernel if the plan adds them."""
        return hf.packages(plan) - hf.packages(job.asked)


def _launch_path(invocation: Invocation, cwd: str) -> str | None:
    """Return the launcher's own config file, absolute; None if it has none."""
    name = invocation.launch.config_file if invocation.launch else None
    return posixpath.join(cwd, name) if name else None


def _with_option(invocation: Invocation, option: str, files: tuple[File, ...]) -> Invocation:
    """Pass the first of the files to the launcher, if there is one."""
    if not files:
        return invocation
    return replace(invocation, head=Flags(args=invocation.head).set(option, files[0].path).args)


def _distributed(invocation: Invocation, ranks: int, python: str) -> Invocation:
    """Start through torchrun what `python` starts: DeepSpeed needs a process group."""
    launch = invocation.launch
    if launch is None:
        return invocation
    options = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    before = launch.head[: -2 if launch.is_module else -1] or (python,)
    program = (*(("-m",) if launch.is_module else ()), launch.program)
    return replace(invocation, head=(*before, *options, *program))
