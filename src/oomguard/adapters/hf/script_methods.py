"""The method of a script on the Trainer: by its flags, its code, or its name.

Source: trl 1.16.0, trainer/*_trainer.py; transformers 5.6.0, models/auto/modeling_auto.py.
"""

from __future__ import annotations

import re

from oomguard.adapters.hf.trainer_adapter import METHOD_SETTINGS
from oomguard.configfile.layered import Settings
from oomguard.job.unmodelled import TrainingMethod

#: Words in the names of scripts that train by another method than supervised fine-tuning.
_METHODS = {
    **{kind.value: kind for kind in TrainingMethod if not kind.is_supervised},
    "gkd": TrainingMethod.DISTILLATION,
    "gold": TrainingMethod.DISTILLATION,
    "gspo": TrainingMethod.GRPO,
    "mpo": TrainingMethod.DPO,
    "prm": TrainingMethod.REWARD,
    "distill": TrainingMethod.DISTILLATION,
    "glue": TrainingMethod.CLASSIFICATION,
    "run_clm": TrainingMethod.PRETRAIN,
}
#: Names of TRL's example scripts whose methods are none that is known here.
_OTHER_METHODS = ("online_dpo", "nash_md", "xpo", "bco", "sdft", "sdpo", "ssd.py", "tpo")
#: Trainers of a script's own code.
_TRAINERS = {
    "DPOTrainer": TrainingMethod.DPO,
    "KTOTrainer": TrainingMethod.KTO,
    "ORPOTrainer": TrainingMethod.ORPO,
    "CPOTrainer": TrainingMethod.CPO,
    "RewardTrainer": TrainingMethod.REWARD,
    "PRMTrainer": TrainingMethod.REWARD,
    "PPOTrainer": TrainingMethod.PPO,
    "GRPOTrainer": TrainingMethod.GRPO,
    "RLOOTrainer": TrainingMethod.RLOO,
    "GKDTrainer": TrainingMethod.DISTILLATION,
    "SentenceTransformerTrainer": TrainingMethod.EMBEDDING,
}
_SUPERVISED = "SFTTrainer"
_TRAINER = re.compile(r"\b([A-Za-z]+Trainer)\(")
_CLASSIFIER = re.compile(r"\bAutoModelFor(?:Sequence|Token)Classification\b")
_WORDS = "AutoModelForCausalLM"


def method_of_script(program: str, settings: Settings, code: str) -> TrainingMethod | None:
    """Return the method that a script's flags, code or name show, supervised otherwise.

    None if the name shows that it is another one.
    """
    name = program.lower()
    if any(word in name for word in _OTHER_METHODS):
        return None
    stated = next(
        (kind for kind, keys in METHOD_SETTINGS.items() if any(map(settings.has, keys))), None
    )
    named = next((kind for word, kind in _METHODS.items() if word in name), None)
    shown = _of_code(code) or named
    if (stated, shown) == (TrainingMethod.GRPO, TrainingMethod.RLOO):
        return shown  # the same flags are RLOO's
    return stated or shown or TrainingMethod.SFT


def _of_code(code: str) -> TrainingMethod | None:
    """Return the method of the one trainer that a script makes, or of the model that it loads."""
    made = set(_TRAINER.findall(code))
    methods = {_TRAINERS[name] for name in made & _TRAINERS.keys()}
    if len(methods) == 1 and _SUPERVISED not in made:
        return methods.pop()
    classifies = _CLASSIFIER.search(code) and _WORDS not in code and not methods
    return TrainingMethod.CLASSIFICATION if classifies else None
