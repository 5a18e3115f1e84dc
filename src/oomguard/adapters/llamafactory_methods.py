"""What LLaMA-Factory's stages compute in a training step.

Source: llamafactory 0.9.5, train/{dpo,kto,ppo,rm}/trainer.py, train/trainer_utils.py
(create_ref_model, create_reward_model, get_batch_logps), hparams/finetuning_args.py; trl 0.24,
models/modeling_value_head.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from oomguard.adapters import fields
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.llamafactory_memory import STAGE, TYPE, quantized_to
from oomguard.adapters.reference_models import other_reference
from oomguard.configfile.layered import Settings
from oomguard.errors import ConfigError, did_you_mean
from oomguard.job.memory_settings import Head, MemorySettings, Objective, Reference
from oomguard.job.plan import Tuning
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_LOSS = fields.text("pref_loss", "sigmoid")
_REFERENCE = fields.maybe_text("ref_model")
_REFERENCE_BITS = fields.maybe_number("ref_model_quantization_bit")
_REWARD_MODEL = fields.maybe_text("reward_model")
_REWARD_TYPE = fields.text("reward_model_type", "lora")
#: The type of a reward model that a server runs.
_SERVED = "api"

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
#: A row for each sample. The same prompts with each other's answers go through both models as well,
#: without gradients: those of the reference while its logits of the samples stand beside copies of
#: the policy's, which are for the metrics.
_UNPAIRED = replace(
    _PREFERENCE,
    method=TrainingMethod.KTO,
    rows=1,
    reference_logit_bytes=16,
    traced="llamafactory_losses:unpaired",
)
#: Logits in 16 bits, log-probabilities for a cross entropy that is dropped, and a copy in fp32
#: that is returned; none of it goes backward.
_REWARD = Objective(
    method=TrainingMethod.REWARD,
    rows=2,
    head=Head.VALUE,
    logit_bytes=(10, 0),
    traced="llamafactory_losses:reward",
)
#: The losses that compare with no frozen policy.
_WITHOUT_REFERENCE = {"orpo": TrainingMethod.ORPO, "simpo": TrainingMethod.SIMPO}
#: The stages that train a value head.
_VALUE_HEADS = ("rm", "ppo")
_METHODS = {
    "pt": TrainingMethod.PRETRAIN,
    "sft": TrainingMethod.SFT,
    "rm": TrainingMethod.REWARD,
    "ppo": TrainingMethod.PPO,
    "dpo": TrainingMethod.DPO,
    "kto": TrainingMethod.KTO,
}

#: What LLaMA-Factory's parser accepts, and ends the job for anything else
#: (0.9.5, hparams/finetuning_args.py).
_CHOICES = {
    STAGE: tuple(_METHODS),
    _LOSS: ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"),
}

PPO_REFUSALS = (
    Refusal(
        message="`reward_model` is necessary for PPO training.",
        when=lambda s, _, __: STAGE.of(s) == "ppo" and not _REWARD_MODEL.of(s),
    ),
    Refusal(
        message="`reward_model_type` cannot be lora for Freeze/Full PPO training.",
        when=lambda s, _, plan: (
            STAGE.of(s) == "ppo" and _REWARD_TYPE.of(s) == "lora" and plan.tuning is not Tuning.LORA
        ),
    ),
)


def check_choices(settings: Settings) -> None:
    """Raise for a stage or a loss that LLaMA-Factory does not have.

    Raises:
        ConfigError: with the key, and the values that it takes.
    """
    for key, choices in _CHOICES.items():
        value = key.of(settings)
        if value not in choices:
            raise ConfigError(
                f"LLaMA-Factory has no {key.name} {value!r}",
                where=settings.origin(key.name),
                next_step=f"{did_you_mean(value, choices)} It takes {', '.join(choices)}.".strip(),
            )


def method_of(settings: Settings) -> TrainingMethod:
    """Return the method of the stage; preference training has several losses."""
    stage = STAGE.of(settings)
    method = _METHODS[stage]
    return _WITHOUT_REFERENCE.get(_LOSS.of(settings), method) if stage == "dpo" else method


def compares_samples(settings: Settings) -> bool:
    """Return whether a sample's loss depends on the others in its micro batch, as KTO's does."""
    return STAGE.of(settings) == "kto"


def cannot_resume(settings: Settings) -> str:
    """Return why the stage cannot resume from its checkpoints; empty if it can.

    With an adapter the Trainer does not find one in what LLaMA-Factory makes of a checkpoint with a
    value head; without one LLaMA-Factory drops the setting.
    """
    stage = STAGE.of(settings)
    return f"LLaMA-Factory cannot resume stage {stage}" if stage in _VALUE_HEADS else ""


def memory_settings(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return the memory settings with what the stage computes; no pairs are packed."""
    stage = STAGE.of(settings)
    if stage == "rm":
        return replace(found, objective=_REWARD, packing=False)
    if stage not in ("dpo", "kto"):
        return found
    lora = found.lora and replace(found.lora, dropout=0.0)  # which the trainers switch off
    kto = _with_reference(_UNPAIRED, settings)
    objective = kto if stage == "kto" else _preference(settings)
    return replace(found, objective=objective, lora=lora, packing=False)


def _preference(settings: Settings) -> Objective:
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


def other_models(settings: Settings, found: MemorySettings) -> tuple[Unmodelled, ...]:
    """Return which models beside the trained one are not counted, or not as they are."""
    if STAGE.of(settings) == "ppo":
        return tuple(_beside_ppo(settings))
    return other_reference(settings, _REFERENCE, found)


def _beside_ppo(settings: Settings) -> Iterator[Unmodelled]:
    """Yield what stage ppo adds; llamafactory 0.9.5 runs it with no TRL, so nothing was measured.

    Its trainer requires trl 0.9.6 at the most, and what it imports came later.
    """
    rollout = (
        "responses of up to max_new_tokens beyond cutoff_len with their key-value cache, the head "
        "for values, and log-probabilities of policy and reference are not included; LLaMA-Factory "
        "0.9.5 runs this stage with no version of TRL"
    )
    yield _missing(settings, STAGE.name, rollout)
    kind, reward = _REWARD_TYPE.of(settings), _REWARD_MODEL.of(settings)
    if reward and kind != _SERVED:
        part = f"the reward model {reward}" if kind == "full" else f"the adapter {reward}"
        yield _missing(settings, _REWARD_MODEL.name, f"{part}, which scores, is not counted")
    named = _REFERENCE.of(settings)
    if named or TYPE.of(settings) != "lora":
        key = _REFERENCE.name if named else TYPE.name
        yield _missing(settings, key, "the frozen reference model is not counted")


def _missing(settings: Settings, key: str, effect: str) -> Unmodelled:
    line = settings.origin(key).line
    return Unmodelled(key=key, effect=effect, direction=Direction.MORE, line=line)
