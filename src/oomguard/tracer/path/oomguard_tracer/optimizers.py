# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Optimizers: their own code where it runs here, their states where it is a kernel of CUDA."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .built import Unsupported
from .request import Variant

#: bitsandbytes keeps smaller tensors in float32, and pages none below the second bound.
LEAST_QUANTIZED = 4096
LEAST_PAGED = 100_000
STATE_BLOCK = 256


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


class Real(Optimizer):
    """An optimizer's own code; it is made at its first step, so that what it creates is seen."""

    def __init__(
        self, parameters: list[nn.Parameter], made: Callable[[], torch.optim.Optimizer]
    ) -> None:
        super().__init__(parameters)
        self._made = made
        self._inner: Any = None

    def step(self) -> None:  # noqa: D102
        if self._inner is None:
            self._inner = self._made()
            getattr(self._inner, "train", lambda: None)()  # schedulefree asks for it
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


def make(variant: Variant, parameters: list[nn.Parameter], model: nn.Module) -> Optimizer:
    """Make the optimizer that a plan names, by the names of transformers or of its class.

    Raises:
        Unsupported: if its states are not known.
    """
    path, _, bare = (variant.optimizer or "adamw_torch").rpartition(".")
    word = bare.lower().replace("-", "_")
    if "bitsandbytes" not in path and "torchao" not in path:
        if word in _ADAMW:
            return _adamw(word, variant, parameters)
        if bare in _TORCH or word in _TORCHS_OWN:
            return _of_torch(_TORCHS_OWN.get(word, bare), variant, parameters)
        if word in _PACKAGES:
            return _of_package(_PACKAGES[word], variant, parameters)
    moments = _low_bit_moments(word, path)
    if moments is None:
        raise Unsupported(f"the states of optimizer {variant.optimizer!r} are not known")
    wide = _embeddings(model) if variant.loop == "trainer" and "torchao" not in path else ()
    return Stateful(parameters, _low_bit(word, moments, frozenset(wide)))


def _adamw(word: str, variant: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    fused = "fused" in word or variant.fused
    arguments: dict[str, Any] = {"fused": True} if fused else {"foreach": variant.foreach}
    return _real(torch.optim.AdamW, variant, parameters, arguments)


def _of_torch(name: str, variant: Variant, parameters: list[nn.Parameter]) -> Optimizer:
    kind = getattr(torch.optim, name, None)
    if kind is None:
        raise Unsupported(f"this torch has no optimizer {name}")
    takes = "foreach" in inspect.signature(kind).parameters
    arguments = {"foreach": variant.foreach} if takes else {}
    return _real(kind, variant, parameters, arguments)


def _of_package(
    source: tuple[str, str, dict[str, Any]], variant: Variant, parameters: list[nn.Parameter]
) -> Optimizer:
    package, name, arguments = source
    try:
        kind = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"this Python has no {package}.{name}") from error
    return _real(kind, variant, parameters, arguments)


def _real(
    kind: Any, variant: Variant, parameters: list[nn.Parameter], arguments: dict[str, Any]
) -> Optimizer:
    grouped = variant.loop not in ("script", "sums-losses")
    groups = _groups(parameters) if grouped else parameters
    return Real(parameters, lambda: kind(groups, lr=1e-4, **arguments))


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Part parameters as the Trainer does: biases and norms have no weight decay."""
    wide = [parameter for parameter in parameters if parameter.dim() > 1]
    flat = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [{"params": group} for group in (wide, flat) if group]


def _embeddings(model: nn.Module) -> Iterator[int]:
    """Return the embeddings' weights, whose states the Trainer keeps in 32 bits.

    Source: transformers 5.23, trainer.py (create_optimizer, GlobalOptimManager).
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield id(module.weight)


def _low_bit_moments(word: str, path: str) -> int | None:
    """Return the moments of an optimizer whose kernels take no room; None for any other."""
    if "torchao" in path:
        return _MOMENTS["adamw"] if word in ("adamw8bit", "adamwfp8") else None
    base = re.sub(r"^paged_?|_?(8|32)bit$", "", word)
    base = re.sub(r"_bnb$", "", base)
    return _MOMENTS.get(base)


def _low_bit(
    word: str, moments: int, wide: frozenset[int]
) -> Callable[[nn.Parameter], list[torch.Tensor]]:
    narrow, paged = "8bit" in word or "fp8" in word, "paged" in word

    def states(parameter: nn.Parameter) -> list[torch.Tensor]:
        elements = parameter.numel()
        if paged and elements >= LEAST_PAGED:
            return []
        if not narrow or elements < LEAST_QUANTIZED or id(parameter) in wide:
            return [torch.zeros_like(parameter, dtype=torch.float32) for _ in range(moments)]
        constants = -(-elements // STATE_BLOCK)
        made = [torch.zeros_like(parameter, dtype=torch.uint8) for _ in range(moments)]
        return made + [parameter.new_zeros(constants, dtype=torch.float32) for _ in made]

    return states


#: Names of the AdamW that may have one kernel for all.
_ADAMW = frozenset(
    (
        *("adam", "adamw", "adamw_hf", "adamw_torch", "adamw_torch_xla"),
        *("adamw_torch_fused", "adamw_apex_fused", "adamw_torch_npu_fused"),
    )
)
#: Classes of torch.optim, by their own names, and by those of the Trainer.
_TORCH = frozenset(("NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "SGD", "Adafactor", "Muon"))
_TORCHS_OWN = {"sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}
#: Names of the Trainer -> the package, the class and the arguments that it passes.
#: Source: transformers 5.23, trainer_optimizer.py.
_PACKAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adafactor": (
        "transformers.optimization",
        "Adafactor",
        {"scale_parameter": False, "relative_step": False},
    ),
    "grokadamw": ("grokadamw", "GrokAdamW", {}),
    "schedule_free_adamw": ("schedulefree", "AdamWScheduleFree", {}),
    "schedule_free_radam": ("schedulefree", "RAdamScheduleFree", {}),
    "schedule_free_sgd": ("schedulefree", "SGDScheduleFree", {}),
}
#: What bitsandbytes keeps for a number.
_MOMENTS = {"adam": 2, "adamw": 2, "lion": 1, "rmsprop": 1, "ademamix": 3}
