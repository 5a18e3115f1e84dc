"""What torchtune's recipes compute in a training step beside the cross entropy of one model.

Source: torchtune 0.6.1, recipes/{lora_dpo_single_device,lora_dpo_distributed,full_dpo_distributed,
knowledge_distillation_single_device,ppo_full_finetune_single_device}.py, modules/transformer.py
(unembed: logits in fp32), rlhf/sequence_processing.py (logits_to_logprobs).
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import torchtune_memory
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import FurtherModel, MemorySettings, Objective, Reference
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

#: Words in the names of recipes (torchtune 0.6.1, _recipe_registry.py).
_METHODS = {
    "dpo": TrainingMethod.DPO,
    "ppo": TrainingMethod.PPO,
    "grpo": TrainingMethod.GRPO,
    "knowledge_distillation": TrainingMethod.DISTILLATION,
    "finetune": TrainingMethod.SFT,
    "qat": TrainingMethod.SFT,
}
#: Logits, the same divided by a temperature, and log-probabilities, which alone stay; backward
#: also two gradients.
_DPO = Objective(
    method=TrainingMethod.DPO,
    rows=2,
    reference=Reference.MODEL,
    logit_bytes=(12, 12),
    reference_logit_bytes=4,
)
#: The recipe's variable `_` holds the reference's logits until those of the next step are there.
_LORA_DPO = replace(_DPO, reference=Reference.START, logit_bytes=(16, 16))
_DISTILLATION = Objective(method=TrainingMethod.DISTILLATION)
_PPO = Objective(method=TrainingMethod.PPO)
_NOT_INCLUDED = {
    TrainingMethod.DISTILLATION: (
        "kd_loss",
        "the losses' copies of the student's and the teacher's logits are not included",
    ),
    TrainingMethod.PPO: (
        "forward_batch_size",
        "generations with their cache, and the trajectories' logits, are not included",
    ),
}
_TEACHER, _SCORES = "teacher_model", "reward_and_value_model"


def method_of(recipe: str) -> TrainingMethod | None:
    """Return the method that a recipe's name states."""
    return next((kind for word, kind in _METHODS.items() if word in recipe), None)


def memory_settings(found: MemorySettings, recipe: str, settings: Settings) -> MemorySettings:
    """Return the memory settings with what the recipe computes, and the models beside its own."""
    method = method_of(recipe)
    if method is TrainingMethod.DPO:
        return replace(found, objective=_LORA_DPO if recipe.startswith("lora_") else _DPO)
    if method is TrainingMethod.DISTILLATION:
        teacher = torchtune_memory.model_of(settings, _TEACHER, "teacher_checkpointer")
        beside = (FurtherModel(key=_TEACHER, model=teacher),)
        return replace(found, objective=replace(_DISTILLATION, further=beside))
    if method is TrainingMethod.PPO:
        scores = torchtune_memory.model_of(settings, _SCORES, "reward_checkpointer")
        further = (
            FurtherModel(key="ref_policy_checkpointer", model=found.model),
            FurtherModel(key=_SCORES, model=scores),
            FurtherModel(key=_SCORES, model=scores, is_trained=True),
        )
        return replace(found, objective=replace(_PPO, further=further))
    return found


def unmodelled(recipe: str, settings: Settings) -> tuple[Unmodelled, ...]:
    """Return what the recipe does that is not included."""
    method = method_of(recipe)
    if method not in _NOT_INCLUDED:
        return ()
    key, effect = _NOT_INCLUDED[method]
    line = settings.origin(key).line
    return (Unmodelled(key=key, effect=effect, direction=Direction.MORE, line=line),)
