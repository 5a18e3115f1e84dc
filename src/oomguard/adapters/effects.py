"""Settings that change memory in a way that the prediction does not include yet.

A job that sets one of them is planned, but never said to fit. What a setting does is stated by the
framework's adapter; what several frameworks share is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oomguard.configfile.layered import Settings
from oomguard.configfile.values import is_true
from oomguard.job.optimizer import states_of
from oomguard.job.unmodelled import Direction, Memory, Unmodelled


def _is_set(value: object) -> bool:
    if isinstance(value, bool):  # which equals a size of 1
        return value
    return value not in (None, "", "none", "None", "false", "False", 0, 1, "1", [], {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One such setting: its key, what it does, and for which values (by default any but off).

    `given` says under which other settings it does so.
    """

    key: str
    effect: str
    direction: Direction = Direction.MORE
    memory: Memory = Memory.GPU
    when: Callable[[object], bool] = _is_set
    given: Callable[[Settings], bool] = lambda _: True

    def of(self, settings: Settings) -> Unmodelled | None:
        """Return the setting as the job states it; None if it does not."""
        if not settings.has(self.key) or not self.when(settings.get(self.key)):
            return None
        if not self.given(settings):
            return None
        return Unmodelled(
            key=self.key,
            effect=self.effect,
            direction=self.direction,
            memory=self.memory,
            line=settings.origin(self.key).line,
        )


def switch(key: str, effect: str, direction: Direction = Direction.MORE) -> Effect:
    """Return the effect of a boolean setting that is on."""
    return Effect(key=key, effect=effect, direction=direction, when=is_true)


def differs(key: str, default: object, effect: str, direction: Direction) -> Effect:
    """Return the effect of a setting whose value is not the framework's default."""
    usual = str(default).lower()
    return Effect(
        key=key,
        effect=effect,
        direction=direction,
        when=lambda value: value is not None and str(value).lower() != usual,
    )


def on_host(key: str, effect: str) -> Effect:
    """Return the effect of a setting that takes host memory."""
    return Effect(key=key, effect=effect, memory=Memory.HOST)


def optimizer(key: str = "optim") -> Effect:
    """Return the effect of an optimizer whose states are unknown."""
    return Effect(
        key=key,
        effect=OTHER_STATES,
        direction=Direction.EITHER,
        when=lambda value: bool(value) and states_of(_class_path(value)) is None,
    )


def _class_path(value: object) -> str:
    return str(value.get("class_path") if isinstance(value, dict) else value)


def quantizer(key: str) -> Effect:
    """Return the effect of quantizing on the fly with another package than bitsandbytes."""
    return Effect(
        key=key,
        effect="its format is not modelled: the weights are counted in 16 bits",
        direction=Direction.LESS,
        when=lambda value: bool(value) and value not in ("bnb", "bitsandbytes"),
    )


OTHER_STATES = "the states of this optimizer are counted as AdamW's"
