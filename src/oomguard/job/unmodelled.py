"""What a job does that a prediction does not include, and the method that it trains by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TrainingMethod(str, Enum):
    """What the loss is computed from."""

    SFT = "sft"
    PRETRAIN = "pretrain"
    DPO = "dpo"
    KTO = "kto"
    ORPO = "orpo"
    SIMPO = "simpo"
    CPO = "cpo"
    REWARD = "reward"
    PPO = "ppo"
    GRPO = "grpo"
    RLOO = "rloo"
    DISTILLATION = "distillation"
    CLASSIFICATION = "classification"
    EMBEDDING = "embedding"

    @property
    def is_supervised(self) -> bool:
        """Return whether the loss is the cross entropy of each sample, which needs nothing else."""
        return self in (TrainingMethod.SFT, TrainingMethod.PRETRAIN)


class Direction(str, Enum):
    """How an effect changes the memory that was predicted."""

    MORE = "more"
    LESS = "less"
    EITHER = "either"


class Memory(str, Enum):
    """Which memory an effect is on."""

    GPU = "gpu"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmodelled:
    """A setting whose effect on memory is not part of the prediction.

    `line` is its line in the config file, None for a flag; `effect` says what is missing; `traced`
    is set where it is missing from an analytic estimate alone.
    """

    key: str
    effect: str
    direction: Direction
    memory: Memory = Memory.GPU
    line: int | None = None
    traced: bool = False

    @property
    def sentence(self) -> str:
        """The setting and what is missing."""
        where = f" (line {self.line})" if self.line else ""
        return f"{self.key}{where}: {self.effect}"
