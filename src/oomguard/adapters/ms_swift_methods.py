"""What ms-swift's commands compute in a training step.

Source: ms-swift 4.6.0, arguments/rlhf_args.py, pipelines/train/rlhf.py, rlhf_trainers/
{rlhf_mixin,dpo_trainer,kto_trainer,cpo_trainer,orpo_trainer,reward_trainer}.py; trl 0.29.1,
experimental/{cpo,orpo,kto}, trainer/utils.py (selective_log_softmax).
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import fields, ms_swift_generation, trl_methods
from oomguard.adapters.fields import Key
from oomguard.adapters.hf import heads
from oomguard.adapters.reference_models import other_reference
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import MemorySettings, Reference
from oomguard.job.unmodelled import TrainingMethod, Unmodelled

SFT, PT, RLHF = "sft", "pt", "rlhf"
_SAMPLES = 16  # of a step, to which ms-swift accumulates where no number is stated
TYPE: Key[str] = fields.text("rlhf_type", "dpo")
_TASK: Key[str | None] = fields.maybe_text("task_type")
_LOSS = fields.maybe_text("loss_type")
_NLL = fields.fraction("cpo_alpha", 1.0)

_KINDS = {
    "dpo": TrainingMethod.DPO,
    "kto": TrainingMethod.KTO,
    "orpo": TrainingMethod.ORPO,
    "simpo": TrainingMethod.SIMPO,
    "cpo": TrainingMethod.CPO,
    "rm": TrainingMethod.REWARD,
    "ppo": TrainingMethod.PPO,
    "grpo": TrainingMethod.GRPO,
    "gkd": TrainingMethod.DISTILLATION,
}
#: `task_type` (arguments/base_args/model_args.py): what is computed beside the next words.
_TASKS = {
    "seq_cls": heads.CLASSIFICATION,
    "embedding": heads.EMBEDDING,
    "reranker": heads.RERANKER,
    "generative_reranker": heads.GENERATIVE_RERANKER,
}


def _task(settings: Settings) -> str:
    """Return the stated task, else a classifier's where labels are counted (model_meta.py)."""
    return _TASK.of(settings) or ("seq_cls" if settings.get("num_labels") else "causal_lm")


def method_of(command: str, settings: Settings) -> TrainingMethod | None:
    """Return the method of a command; None for one that is not known here."""
    if command == PT:
        return TrainingMethod.PRETRAIN
    if command == RLHF:
        kind = _KINDS.get(TYPE.of(settings))
        is_simpo = kind is TrainingMethod.CPO and _LOSS.of(settings) == "simpo"
        return TrainingMethod.SIMPO if is_simpo else kind
    task = _task(settings)
    if task == "causal_lm":
        return TrainingMethod.SFT
    return _TASKS[task].method if task in _TASKS else None


def default_accumulation(command: str, settings: Settings, batch: int) -> int:
    """Return the accumulation where none is stated, of a `batch` over all ranks."""
    if command == RLHF and method_of(command, settings) is TrainingMethod.GRPO:
        return 1
    return max(1, -(-_SAMPLES // batch))


def compares_samples(command: str, settings: Settings) -> bool:
    """Return whether the loss of a sample depends on the others in its micro batch."""
    method = method_of(command, settings)
    return method is TrainingMethod.KTO and _LOSS.of(settings) in (None, "kto")


def memory_settings(found: MemorySettings, command: str, settings: Settings) -> MemorySettings:
    """Return the memory settings with what the command computes."""
    if command == RLHF:
        return _preference(found, settings)
    task = _task(settings)
    if command == PT or task not in _TASKS:
        return found
    if task == "seq_cls":
        return heads.classifier(found, settings)
    return replace(found, objective=_TASKS[task])


def _preference(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return what `swift rlhf` computes; no pairs are packed here."""
    method = method_of(RLHF, settings)
    if method is TrainingMethod.GRPO:
        return ms_swift_generation.memory_settings(found, settings)
    lora = found.lora and replace(found.lora, dropout=0.0)  # disable_dropout, in all their configs
    if method is TrainingMethod.REWARD:
        return replace(found, objective=trl_methods.REWARD, lora=lora, packing=False)
    objective = trl_methods.WHOLE.get(method) if method else None
    if objective is None:
        return found
    if method in (TrainingMethod.CPO, TrainingMethod.SIMPO) and not _NLL.of(settings):
        objective = trl_methods.without_words(objective)
    if objective.reference is not Reference.NONE and ms_swift_generation.REFERENCE.of(settings):
        objective = replace(objective, reference=Reference.MODEL)
    return replace(found, objective=objective, lora=lora, packing=False)


def unmodelled(command: str, settings: Settings, found: MemorySettings) -> tuple[Unmodelled, ...]:
    """Return what a command does that is not included."""
    if command == RLHF:
        return other_reference(settings, ms_swift_generation.REFERENCE, found)
    return (heads.more_rows(_TASK.name, settings),) if found.rows > 1 else ()
