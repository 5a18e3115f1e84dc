# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""torchtune's offloaded activations: what is saved for the backward pass waits on the host.

Source: torchtune 0.6.1, training/_activation_offloading.py (OffloadActivations, with streams).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

#: Smaller tensors stay; the last few are alive until their copies have surely been made.
LEAST_BYTES = 1024
ON_THEIR_WAY = 5


class _Moved(NamedTuple):
    """A tensor that is on the host."""

    number: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Offloaded(saved_tensors_hooks):
    """Frees what autograd saves, and allocates it again when it is needed."""

    def __init__(self) -> None:
        self._count = 0
        self._leaving: dict[int, torch.Tensor] = {}
        self._back: dict[int, torch.Tensor] = {}
        self._node: Any = None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        self._count += 1
        if isinstance(tensor, nn.Parameter) or tensor.nbytes < LEAST_BYTES:
            return tensor
        for number in [n for n in self._leaving if n <= self._count - ON_THEIR_WAY]:
            del self._leaving[number]
        self._leaving[self._count] = tensor
        return _Moved(self._count, tensor.shape, tensor.stride(), tensor.dtype)

    def _unpack(self, kept: Any) -> torch.Tensor:
        if not isinstance(kept, _Moved):
            return kept
        node, done = torch._C._current_autograd_node(), []
        if node is not self._node:
            self._node, done = node, list(self._back)
        tensor = self._leaving.get(kept.number)
        if tensor is None:
            tensor = torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype)
            self._back[kept.number] = tensor

        def after(outputs: Any, _: Any) -> Any:
            self._leaving.clear()
            for number in done:
                self._back.pop(number, None)
            return outputs

        node.register_hook(after)
        return tensor

    def end(self) -> None:
        """Free what the last node needed, at the end of the backward pass."""
        self._back.clear()
        self._node = None


class _Kept(saved_tensors_hooks):
    """Keeps the saved tensors of a part of the model on the GPU."""

    def __init__(self) -> None:
        super().__init__(lambda tensor: tensor, lambda tensor: tensor)


def spare(head: nn.Module) -> None:
    """Leave what the output head saves on the GPU."""
    open_: list[AbstractContextManager[Any]] = []

    def before(_: nn.Module, __: Any) -> None:
        open_.append(_Kept())
        open_[-1].__enter__()

    def after(_: nn.Module, __: Any, ___: Any) -> None:
        open_.pop().__exit__(None, None, None)

    head.register_forward_pre_hook(before)
    head.register_forward_hook(after, always_call=True)


def offloaded(forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Run a forward pass whose saved tensors go to the host."""
    manager = Offloaded()

    def run(batch: Any) -> Any:
        manager.end()
        with manager:
            return forward(batch)

    return run
