# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Training steps of other methods: the frozen reference beside the policy, and the loss of both.

The losses are the frameworks' own and stand in `oomguard_traced_models`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .built import autocast
from .lora import LoraLinear
from .request import ObjectiveRequest, Variant

#: The names of the two models in a step.
POLICY, REFERENCE = "policy", "reference"


class LossMark(nn.Module):
    """Entered where the loss begins, which need not be at the output head itself."""

    def forward(self) -> None:
        """Mark the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What a loss is computed from.

    `policy` calls the trained model, `base` is that model without PEFT. `compare` calls the frozen
    reference, without gradients; None where the loss has none. Each call is autocast by itself, as
    what `autocast` returns is. Modules that the loss adds to the model go into `own`.
    """

    policy: Callable[..., Any]
    base: nn.Module
    reference: nn.Module | None
    compare: Callable[..., Any] | None
    own: nn.Module
    autocast: Callable[[Callable[..., Any]], Callable[..., Any]]
    at_loss: Callable[[], None]
    cuda: bool


class MethodStep(nn.Module):
    """The forward pass of a step: the loss of a batch."""

    def __init__(self, policy: nn.Module, reference: nn.Module | None) -> None:
        super().__init__()
        self.add_module(POLICY, policy)
        self.add_module(REFERENCE, reference)
        self.own = nn.Module()
        self.head = LossMark()
        self.loss: Callable[[dict[str, Any]], torch.Tensor] | None = None

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the loss of a batch."""
        if self.loss is None:
            raise RuntimeError("the step has no loss")
        return {"loss": self.loss(batch)}

    def train(self, mode: bool = True) -> MethodStep:
        """Set the mode of the policy; the reference only ever evaluates."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self


def step(
    policy: nn.Module,
    base: nn.Module,
    reference: nn.Module | None,
    variant: Variant,
    objective: ObjectiveRequest,
) -> MethodStep:
    """Return the step of an objective; `base` is the model in `policy`."""
    made = MethodStep(policy, reference)
    compare = _compare(policy, reference, objective.reference)
    cast = partial(_autocast, variant=variant)
    models = Models(
        policy=cast(policy),
        base=base,
        reference=reference,
        compare=cast(compare) if compare else None,
        own=made.own,
        autocast=cast,
        at_loss=made.head,
        cuda=variant.cuda,
    )
    module, _, name = objective.loss.partition(":")
    make = getattr(importlib.import_module(f"oomguard_traced_models.{module}"), name)
    made.loss = make(models)
    return made


def _autocast(call: Callable[..., Any], variant: Variant) -> Callable[..., Any]:
    """Return a call as accelerate prepares a model's: its casts end with it."""

    def cast(**inputs: Any) -> Any:
        with autocast(variant):
            return call(**inputs)

    return cast


def _compare(
    policy: nn.Module, reference: nn.Module | None, kind: str
) -> Callable[..., Any] | None:
    if kind == "none":
        return None

    def compare(**inputs: Any) -> Any:
        if reference is not None:
            with torch.no_grad():
                return reference(**inputs)
        with torch.no_grad(), _adapter_off(policy):
            return policy(**inputs)

    return compare


@contextmanager
def _adapter_off(policy: Any) -> Iterator[None]:
    if hasattr(policy, "disable_adapter"):
        with policy.disable_adapter():
            yield
        return
    layers = [module for module in policy.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.off = True
    yield
    for layer in layers:
        layer.off = False
