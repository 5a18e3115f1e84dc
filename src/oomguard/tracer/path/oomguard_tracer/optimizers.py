# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Optimizers: PyTorch's own where it has them, the states of the others where it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .built import Unsupported
from .request import Variant

#: bitsandbytes keeps smaller tensors in float32, and pages none below the second bound.
LEAST_QUANTIZED = 4096
LEAST_PAGED = 100_000
STATE_BLOCK = 256


#: Words in the names of optimizers that keep other states than the one that the name begins with.
_NOT_THEIRS = ("4bit", "fp8", "anyprecision", "mini", "adamax")


class Optimizer:
    """What the loop needs of an optimizer, and its states for the tracer to name."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters

    def step(self) -> None:
        """Use the gradients."""
        raise NotImplementedError

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        """Return each state with the parameter that it belongs to."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None


class Torch(Optimizer):
    """One of `torch.optim`."""

    def __init__(self, parameters: list[nn.Parameter], inner: torch.optim.Optimizer) -> None:
        super().__init__(parameters)
        self._inner = inner

    def step(self) -> None:  # noqa: D102
        self._inner.step()

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:  # noqa: D102
        for parameter, state in self._inner.state.items():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.dim() > 0:
                    yield parameter, value


class Stateful(Optimizer):
    """An optimizer that updates one tensor at a time in one kernel; only its states take room."""

    def __init__(
        self, parameters: list[nn.Parameter], make: Callable[[nn.Parameter], list[torch.Tensor]]
    ) -> None:
        super().__init__(parameters)
        self._make = make
        self._states: dict[int, list[torch.Tensor]] = {}

    def step(self) -> None:  # noqa: D102
        for parameter in self.parameters:
            if id(parameter) not in self._states:
                self._states[id(parameter)] = self._make(parameter)

    def states(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:  # noqa: D102
        for parameter in self.parameters:
            for state in self._states.get(id(parameter), []):
                yield parameter, state


#: Stands where every parameter has an optimizer of its own, which steps in the backward pass.
NOTHING = Stateful([], lambda _: [])


def make(variant: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    """Make the optimizer that a plan names, by the names of transformers.

    Raises:
        Unsupported: if its states are not known.
    """
    name = (variant.optimizer or "adamw_torch").lower().replace("-", "_").rsplit(".", 1)[-1]
    kind = next((known for known in _MAKERS if name.startswith(known)), None)
    if kind is None or any(word in name for word in _NOT_THEIRS):
        raise Unsupported(f"the states of optimizer {variant.optimizer!r} are not known")
    return _MAKERS[kind](name, variant, parameters)


def _adam(name: str, variant: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    if "8bit" in name or "paged" in name or "bnb" in name or name.startswith("pagedadam"):
        return Stateful(parameters, _bitsandbytes(name, moments=2))
    fused = "fused" in name or variant.fused
    arguments: dict[str, Any] = {"fused": True} if fused else {"foreach": variant.foreach}
    grouped = variant.loop not in ("script", "sums-losses")
    groups = _groups(parameters) if grouped else parameters
    return Torch(parameters, torch.optim.AdamW(groups, lr=1e-4, **arguments))


def _sgd(_: str, variant: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    return Torch(parameters, torch.optim.SGD(parameters, lr=1e-4, foreach=variant.foreach))


def _lion(name: str, _: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    return Stateful(parameters, _bitsandbytes(name, moments=1))


def _adafactor(_: str, __: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    return Stateful(parameters, _factored)


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Part parameters as the Trainer does: biases and norms have no weight decay."""
    wide = [parameter for parameter in parameters if parameter.dim() > 1]
    flat = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [{"params": group} for group in (wide, flat) if group]


def _bitsandbytes(name: str, *, moments: int) -> Callable[[nn.Parameter], list[torch.Tensor]]:
    narrow, paged = "8bit" in name, "paged" in name

    def states(parameter: nn.Parameter) -> list[torch.Tensor]:
        elements = parameter.numel()
        if paged and elements >= LEAST_PAGED:
            return []
        if not narrow or elements < LEAST_QUANTIZED:
            return [torch.zeros_like(parameter, dtype=torch.float32) for _ in range(moments)]
        constants = -(-elements // STATE_BLOCK)
        made = [torch.zeros_like(parameter, dtype=torch.uint8) for _ in range(moments)]
        return made + [parameter.new_zeros(constants, dtype=torch.float32) for _ in made]

    return states


def _factored(parameter: nn.Parameter) -> list[torch.Tensor]:
    """Adafactor keeps the means of rows and columns."""
    if parameter.dim() <= 1:
        return [torch.zeros_like(parameter, dtype=torch.float32)]
    rows, columns = parameter.shape[:-1], (*parameter.shape[:-2], parameter.shape[-1])
    return [parameter.new_zeros(shape, dtype=torch.float32) for shape in (rows, columns)]


_MAKERS = {
    "adamw": _adam,
    "adam": _adam,
    "paged_adamw": _adam,
    "pagedadamw": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "paged_lion": _lion,
    "adafactor": _adafactor,
}
