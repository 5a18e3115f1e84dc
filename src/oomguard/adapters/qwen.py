"""QwenLM/Qwen: `torchrun finetune.py ...`, and the shell scripts that wrap it.

Source: QwenLM/Qwen, finetune.py and finetune/*.sh; its pins are transformers >=4.32,<4.38.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace

from oomguard.adapters import fields, launchers, qwen_scripts
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.contract import Claim, JobRequest, Marks
from oomguard.adapters.fields import Binding, Bindings, flag
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.hf.hf_memory import QWEN_MODEL, QWEN_RANK, qwen_memory_settings
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.hf.trainer_adapter import ENVIRONMENT, ZERO3_WITH_BATCH_SEARCH
from oomguard.adapters.settings.script_settings import QWEN
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.job.checkpoint import Layout, Mode
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import (
    EmbeddingRows,
    Overlong,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Job

#: Flags that finetune.py has and the Trainer has not; any two identify it.
_FLAGS = ("lazy_preprocess", "q_lora", "use_lora", "model_max_length", "data_path")
_ENOUGH = 2
_LORA, _QLORA = flag("use_lora"), flag("q_lora")
_IGNORED = (
    "finetune.py accepts --resume_from_checkpoint and ignores it, and without the monitor "
    "trainer.train() gets no checkpoint"
)

BINDINGS = Bindings(
    bindings=(
        *hf.SHARED,
        # Every sample is padded to it: memory follows this flag, not the data.
        fields.direct("sequence_length", fields.number("model_max_length", 8192)),
        fields.always("overlong", Overlong.CUT),
        fields.direct("checkpointing", flag("gradient_checkpointing")),
        Binding(field="precision", read=hf.mixed_precision, edits=hf.precision_edits),
        Binding(
            field="quantization",
            read=lambda settings: (
                Quantization.PREQUANTIZED if _QLORA.of(settings) else Quantization.NONE
            ),
            edits=lambda _, __: None,
        ),
        fields.switch("tuning", _LORA, on=Tuning.LORA, off=Tuning.FULL),
        hf.rank_under(_LORA, QWEN_RANK),
    )
)


_GPTQ = StoredFormat(
    method="gptq",
    described="gptq in 4 bits, by --q_lora",
    quantization=Quantization.PREQUANTIZED,
)


def _is_chat(settings: Settings) -> bool:
    return "chat" in QWEN_MODEL.of(settings).lower()


_REFUSALS = (
    Refusal(
        message="--q_lora trains a checkpoint that GPTQ has quantized (a name with -Int4); "
        "finetune.py quantizes nothing by itself.",
        when=lambda _, job, plan: plan.quantization is not job.asked.quantization,
    ),
    Refusal(
        message="ZeRO3 is incompatible with LoRA when finetuning on base model.",
        when=lambda s, _, plan: (
            plan.sharding is Sharding.ZERO3
            and plan.tuning is Tuning.LORA
            and plan.quantization is Quantization.NONE
            and not _is_chat(s)
        ),
    ),
    Refusal(
        message="DeepSpeed Zero-3 is not compatible with passing a device_map.",
        when=lambda _, __, plan: (
            plan.sharding is Sharding.ZERO3 and plan.quantization is Quantization.PREQUANTIZED
        ),
    ),
    Refusal(
        message="A GPTQ checkpoint is trained with --fp16: AutoGPTQ has no other kernels.",
        when=lambda _, job, plan: (
            plan.quantization is Quantization.PREQUANTIZED
            and plan.precision is not Precision.FP16_MIXED
            and plan.precision is not job.asked.precision
        ),
    ),
    Refusal(
        message="--q_lora without --use_lora is ignored.",
        when=lambda _, __, plan: (
            plan.quantization is Quantization.PREQUANTIZED and plan.tuning is Tuning.FULL
        ),
    ),
    Refusal(
        message="finetune.py trains wte and lm_head of a base model in full, but of no model with "
        '"chat" in its name.',
        when=lambda _, __, plan: plan.embedding_rows is EmbeddingRows.NEW,
    ),
    ZERO3_WITH_BATCH_SEARCH,
    hf.NO_METRIC,
)


class Qwen(HFTrainer):
    """QwenLM/Qwen's finetune.py."""

    name = "qwen"
    title = "QwenLM/Qwen finetune.py"
    marks = Marks()
    bindings = BINDINGS
    refusals = _REFUSALS
    groups = QWEN
    environment = (*ENVIRONMENT, "NNODES", "CUDA_DEVICE_MAX_CONNECTIONS")
    rank = QWEN_RANK

    def of_model(
        self, job: Job, model_type: str | None, stored_as: StoredFormat | None = None
    ) -> Job:
        """Return the job of a model of this type; --q_lora is for a GPTQ checkpoint of 4 bits."""
        unsized = stored_as is None or stored_as.quantization is None
        if unsized and job.asked.quantization is Quantization.PREQUANTIZED:
            stored_as = _GPTQ
        return super().of_model(job, model_type, stored_as)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim finetune.py with two flags that only it has, and its shell scripts."""
        if qwen_scripts.is_script(argv):
            return Claim.OWN
        launch = launchers.parse(argv)
        if launch is None or posixpath.basename(launch.program) != "finetune.py":
            return Claim.NO
        flags = Flags(args=launch.args)
        return Claim.OWN if sum(flags.has(key) for key in _FLAGS) >= _ENOUGH else Claim.NO

    def config_path(self, argv: tuple[str, ...]) -> str | None:
        """Return None: finetune.py reads flags only."""
        return None

    def referenced_files(self, request: JobRequest) -> tuple[str, ...]:
        """Return the shell script, or the DeepSpeed file and accelerate's."""
        if not qwen_scripts.is_script(request.argv):
            return super().referenced_files(request)
        script = qwen_scripts.path(request)
        return (script, *super().referenced_files(qwen_scripts.unwrapped(request)))

    def read(self, request: JobRequest) -> Job:
        """Read the job; a shell script becomes the line that it would start."""
        if not qwen_scripts.is_script(request.argv):
            return super().read(request)
        plain = qwen_scripts.unwrapped(request)
        job = super().read(plain)
        exported = {name: plain.env[name] for name in qwen_scripts.EXPORTED if name in plain.env}
        return replace(job, env={**job.env, **exported})

    def memory_settings(self, job: Job) -> MemorySettings:
        """Return what decides the memory besides the plan."""
        return qwen_memory_settings(self.of_job(job).settings, job)

    def checkpoint_layout(self, job: Job) -> Layout | None:
        """Return the Trainer's checkpoints, which the monitor passes to finetune.py."""
        return super().checkpoint_layout(job) if job.inside else None

    def resume_mode(self, job: Job, before: Plan, after: Plan) -> tuple[Mode, str]:
        """Return what survives a change: nothing without the monitor."""
        return super().resume_mode(job, before, after) if job.inside else (Mode.RESTART, _IGNORED)
