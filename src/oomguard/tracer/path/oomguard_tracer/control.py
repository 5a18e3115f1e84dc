# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Keeps control tensors real while the payload is fake, so that shapes may depend on data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .experts import is_routing, spread
from .fakes import DEVICE, device_of

aten = torch.ops.aten
CONTROL = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool})
#: A real tensor beyond this many elements becomes fake: its values would cost real memory.
MOST_ELEMENTS = 1 << 24
FEW_ELEMENTS = 4096
INDEXING = frozenset(
    {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
)


class RealControl(TorchDispatchMode):
    """Runs operators on integers and booleans for real, and all others on fake tensors."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is DEVICE:
            return device_of(args[0])
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        if _real(func, tensors, args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.overloadpacket in INDEXING:
            args = (args[0], _positions(args[1]), *args[2:])
        if any(not isinstance(tensor, FakeTensor) for tensor in tensors):
            args, kwargs = tree_map(self._faked, (args, kwargs))
        out = func(*args, **kwargs)
        return (out[0], spread(out[0], args[0].shape[-1])) if is_routing(func, out) else out

    def _faked(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            return self._fake.from_tensor(value)
        return value


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments: operators take them bare or in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _real(
    func: Any, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    if kwargs.get("device") not in (None, "cpu", torch.device("cpu")):
        return False
    if tensors:
        small = all(t.dtype in CONTROL or t.numel() <= FEW_ELEMENTS for t in tensors)
        return small and sum(tensor.numel() for tensor in tensors) < MOST_ELEMENTS
    dtype = kwargs.get("dtype")
    scalar = bool(args) and isinstance(args[0], (list, tuple)) and not args[0]
    return scalar or dtype in CONTROL or (dtype is None and func.overloadpacket is aten.arange)


def _positions(indices: Any) -> list[Any]:
    """Turn real boolean masks into index lists, whose lengths a fake tensor can have."""
    turned: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        if is_mask and not isinstance(index, FakeTensor):
            with unset_fake_temporarily():
                turned.extend(index.nonzero(as_tuple=True))
        else:
            turned.append(index)
    return turned
