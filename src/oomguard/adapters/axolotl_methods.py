"""What axolotl computes in a training step, by `rl` or by the head of its model.

Source: axolotl 0.19.0, train.py (setup_reference_model), core/builders/{rl,causal}.py,
core/trainers/{trl.py,dpo/}, utils/schemas/{enums,validation}.py; trl 1.9.0, which it requires.
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import fields, trl_methods
from oomguard.adapters.colocated_engine import SERVER, EngineKeys
from oomguard.adapters.hf import heads
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Generation, MemorySettings, Objective
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_RL = fields.maybe_text("rl")
_REWARD = fields.flag("reward_model")
_PROCESS_REWARD = fields.flag("process_reward_model")
ADAPTER = fields.maybe_text("adapter")
_NLL = fields.fraction("cpo_alpha", 1.0)

_KINDS = {
    "dpo": TrainingMethod.DPO,
    "ipo": TrainingMethod.DPO,
    "kto": TrainingMethod.KTO,
    "orpo": TrainingMethod.ORPO,
    "simpo": TrainingMethod.SIMPO,
    "grpo": TrainingMethod.GRPO,
    "gdpo": TrainingMethod.GRPO,
}
#: A vLLM that is said to share the GPUs (core/trainers/grpo/__init__.py, schemas/vllm.py).
ENGINE = EngineKeys(
    used=fields.flag("trl.use_vllm"),
    mode=fields.text("trl.vllm_mode", SERVER),
    share=fields.fraction("vllm.gpu_memory_utilization", 0.9),
    sleeps=fields.flag("trl.vllm_enable_sleep_mode"),
)
#: The methods whose trainers are given the adapter's config (loaders/model.py, _load_adapters).
_ADAPTED_BY_TRL = frozenset({TrainingMethod.DPO, TrainingMethod.KTO})
#: The methods for which axolotl loads a reference that their trainers are not given.
_IN_VAIN = frozenset({TrainingMethod.KTO, TrainingMethod.SIMPO})


def method_of(settings: Settings) -> TrainingMethod | None:
    """Return the method; None for one that is not known here."""
    head = _head(settings)
    if head is not None:
        return head.method
    kind = _RL.of(settings)
    if kind:
        return _KINDS.get(kind)
    return TrainingMethod.PRETRAIN if settings.get("pretraining_dataset") else TrainingMethod.SFT


def compares_samples(settings: Settings) -> bool:
    """Return whether the loss of a sample depends on the others in its micro batch."""
    return method_of(settings) is TrainingMethod.KTO


def memory_settings(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return the memory settings with what the method computes; no pairs are packed."""
    head = _head(settings)
    if head is not None:
        return replace(found, objective=head)
    method = method_of(settings)
    if method is TrainingMethod.GRPO and ENGINE.is_colocated(settings):
        found = replace(found, generation=Generation(by_engine=True, gathers=False))
    objective = trl_methods.WHOLE.get(method) if method else None
    if objective is None:
        return found
    if method is TrainingMethod.SIMPO and not _NLL.of(settings):
        objective = trl_methods.without_words(objective)
    lora = found.lora and replace(found.lora, dropout=0.0)  # disable_dropout, in all their configs
    # Their trainers make the adapter, in bf16 over a quantized base (trl 1.9.0, dpo_trainer.py).
    code = replace(found.code, quantized_adapter_bf16=method in _ADAPTED_BY_TRL)
    return replace(found, code=code, objective=objective, lora=lora, packing=False)


def unmodelled(settings: Settings) -> tuple[Unmodelled, ...]:
    """Return a model that axolotl loads as the reference of a trainer that takes none."""
    if method_of(settings) not in _IN_VAIN or ADAPTER.of(settings):
        return ()
    return (
        Unmodelled(
            key=_RL.name,
            effect="axolotl loads a further copy of the model, which this trainer does not use",
            direction=Direction.MORE,
            line=settings.origin(_RL.name).line,
        ),
    )


def _head(settings: Settings) -> Objective | None:
    """Return what a model with another head than a language model's computes."""
    if _REWARD.of(settings):
        return trl_methods.REWARD
    classifier = replace(heads.CLASSIFICATION, labels=heads.LABELS.of(settings))
    if _PROCESS_REWARD.of(settings):
        return replace(classifier, method=TrainingMethod.REWARD)
    return classifier if str(settings.get("model_type")).endswith("Classification") else None
