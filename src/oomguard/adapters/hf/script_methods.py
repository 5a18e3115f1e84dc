"""What a script on the Trainer trains, and by which method: by its flags, its code, or its name.

Source: trl 1.16.0, trainer/*_trainer.py; transformers 5.6.0, models/auto/modeling_auto.py; peft
0.21.2, tuners/*/config.py.
"""

from __future__ import annotations

import re

from oomguard.adapters.hf.trainer_adapter import METHOD_SETTINGS
from oomguard.configfile.layered import Settings
from oomguard.job.plan import Tuning
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
#: Beginnings or endings of the names of trainers that a script makes.
_TRAINERS = {
    "DPO": TrainingMethod.DPO,
    "KTO": TrainingMethod.KTO,
    "ORPO": TrainingMethod.ORPO,
    "CPO": TrainingMethod.CPO,
    "Reward": TrainingMethod.REWARD,
    "PRM": TrainingMethod.REWARD,
    "PPO": TrainingMethod.PPO,
    "GRPO": TrainingMethod.GRPO,
    "RLOO": TrainingMethod.RLOO,
    "GKD": TrainingMethod.DISTILLATION,
    "GOLD": TrainingMethod.DISTILLATION,
    "Distill": TrainingMethod.DISTILLATION,
    "Distillation": TrainingMethod.DISTILLATION,
    "MiniLLM": TrainingMethod.DISTILLATION,
    "IWOPD": TrainingMethod.DISTILLATION,
    "SentenceTransformer": TrainingMethod.EMBEDDING,
}
_SUPERVISED = "SFT"
#: Those whose methods are none that is known here.
_OTHER_TRAINER = re.compile(r"(OnlineDPO|NashMD|XPO|BCO|SDFT|SDPO|SSD|TPO|A2PO|GMPO)$")
#: TRL's configs, whose defaults are not the Trainer's (trl 1.16, trainer/base_config.py).
_TRL_CONFIG = re.compile(
    r"\b\w*(?:SFT|PO|KTO|BCO|Reward|PRM|RLOO|GKD|GOLD|NashMD|SDFT|SSD|MiniLLM|IWOPD|Distillation)"
    r"\w*Config\b"
)
_PRECISIONS, _CHECKPOINTS = ("bf16", "fp16"), ("gradient_checkpointing",)
_TRAINER = re.compile(r"\b(\w+)Trainer\(")
_CLASSIFIER = re.compile(r"\bAutoModelFor(?:Sequence|Token)Classification\b")
_WORDS = "AutoModelForCausalLM"
#: PEFT's adapters, whose configs a script makes: LoRA's own, then the others.
_LORA_CONFIG = re.compile(r"\bLoraConfig\(")
_OTHER_CONFIG = re.compile(
    r"\b(?:IA3|Vera|OFT|BOFT|HRA|AdaLora|LoHa|LoKr|FourierFT|WaveFT|Poly|LNTuning|VBLoRA|Bone|Miss"
    r"|XLora|RandLora|Shira|C3A|Road|TrainableTokens|AdaptionPrompt|PrefixTuning|PromptTuning"
    r"|PromptEncoder|MultitaskPromptTuning|CPT)Config\("
)


def method_of_script(program: str, settings: Settings, code: str) -> TrainingMethod | None:
    """Return the method that a script's flags, code or name show, supervised otherwise.

    None if the name shows that it is another one.
    """
    name = program.lower()
    made = set(_TRAINER.findall(code))
    if any(word in name for word in _OTHER_METHODS) or any(map(_OTHER_TRAINER.search, made)):
        return None
    stated = next(
        (kind for kind, keys in METHOD_SETTINGS.items() if any(map(settings.has, keys))), None
    )
    named = next((kind for word, kind in _METHODS.items() if word in name), None)
    shown = _of_code(code, made) or named
    if (stated, shown) == (TrainingMethod.GRPO, TrainingMethod.RLOO):
        return shown  # the same flags are RLOO's
    return stated or shown or TrainingMethod.SFT


def tuning_of_script(code: str, switches: tuple[str, ...]) -> Tuning | None:
    """Return what a script trains of which no flag says that it has an adapter.

    `switches` are the flags that a LoRA adapter hangs on; where none is in the code, the adapter is
    there whatever the flags say, and its rank is not known.
    """
    if _OTHER_CONFIG.search(code):
        return Tuning.OTHER
    is_fixed = _LORA_CONFIG.search(code) and not any(name in code for name in switches)
    return None if is_fixed else Tuning.FULL


def takes_trl_defaults(code: str, settings: Settings) -> bool:
    """Return whether a script leaves precision or checkpointing to the defaults of TRL's configs.

    Those that the code itself states are not visible either.
    """
    states = all(any(map(settings.has, keys)) for keys in (_PRECISIONS, _CHECKPOINTS))
    return bool(_TRL_CONFIG.search(code)) and not states


def _of_code(code: str, made: set[str]) -> TrainingMethod | None:
    """Return the method of the one trainer that a script makes, or of the model that it loads."""
    methods = {
        kind
        for word, kind in _TRAINERS.items()
        if any(name.startswith(word) or name.endswith(word) for name in made)
    }
    if len(methods) == 1 and not any(name.endswith(_SUPERVISED) for name in made):
        return methods.pop()
    classifies = _CLASSIFIER.search(code) and _WORDS not in code and not methods
    return TrainingMethod.CLASSIFICATION if classifies else None
