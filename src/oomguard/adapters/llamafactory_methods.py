"""What LLaMA-Factory's stages compute in a training step.

Source: llamafactory 0.9.5, train/dpo/trainer.py, train/trainer_utils.py (create_ref_model,
get_batch_logps), hparams/finetuning_args.py (use_ref_model).
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import fields
from oomguard.adapters.llamafactory_memory import STAGE, quantized_to
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import MemorySettings, Objective, Reference
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_LOSS = fields.text("pref_loss", "sigmoid")
_REFERENCE = fields.maybe_text("ref_model")
_REFERENCE_BITS = fields.maybe_number("ref_model_quantization_bit")

#: Logits in fp32, and their log-probabilities with a copy beside them in the forward pass, with
#: two gradients in the backward pass.
_PREFERENCE = Objective(
    method=TrainingMethod.DPO,
    rows=2,
    reference=Reference.START,
    logit_bytes=(8, 12),
    reference_logit_bytes=12,
    traced="llamafactory_losses:preference",
)
#: The losses that compare with no frozen policy.
_WITHOUT_REFERENCE = {"orpo": TrainingMethod.ORPO, "simpo": TrainingMethod.SIMPO}
_METHODS = {
    "pt": TrainingMethod.PRETRAIN,
    "sft": TrainingMethod.SFT,
    "rm": TrainingMethod.REWARD,
    "ppo": TrainingMethod.PPO,
    "dpo": TrainingMethod.DPO,
    "kto": TrainingMethod.KTO,
}


def method_of(settings: Settings) -> TrainingMethod:
    """Return the method of the stage; preference training has several losses."""
    stage = STAGE.of(settings)
    method = _METHODS.get(stage, TrainingMethod.SFT)
    return _WITHOUT_REFERENCE.get(_LOSS.of(settings), method) if stage == "dpo" else method


def memory_settings(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return the memory settings with what the stage computes.

    Both models lose their dropout, and no pairs are packed.
    """
    objective = _objective(settings)
    if objective is None:
        return found
    lora = found.lora and replace(found.lora, dropout=0.0)
    return replace(found, objective=objective, lora=lora, packing=False)


def _objective(settings: Settings) -> Objective | None:
    if STAGE.of(settings) != "dpo":
        return None
    objective = replace(_PREFERENCE, method=method_of(settings))
    if _LOSS.of(settings) in _WITHOUT_REFERENCE:
        return replace(objective, reference=Reference.NONE, reference_logit_bytes=0.0)
    return _with_reference(objective, settings)


def _with_reference(objective: Objective, settings: Settings) -> Objective:
    """Return an objective that compares with the model in `ref_model`, where the job names one."""
    if not _REFERENCE.of(settings):
        return objective
    stored = quantized_to(settings, _REFERENCE_BITS.of(settings))
    return replace(objective, reference=Reference.MODEL, reference_quantization=stored)


def other_reference(settings: Settings, found: MemorySettings) -> tuple[Unmodelled, ...]:
    """Return that a reference model of another name is counted as large as the trained one."""
    objective, name = found.objective, _REFERENCE.of(settings)
    if objective is None or objective.reference is not Reference.MODEL or name == found.model:
        return ()
    return (
        Unmodelled(
            key=_REFERENCE.name,
            effect=f"{name} is counted as large as the trained model",
            direction=Direction.EITHER,
            line=settings.origin(_REFERENCE.name).line,
        ),
    )
