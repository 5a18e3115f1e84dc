# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Runs mixtures of experts on fake tensors: the routing of tokens and the grouped products.

Routing depends on data. Here tokens are spread evenly, as the routers' auxiliary loss wants it: of
the grouped product, which transformers takes by default, memory does not depend on it at all; of
the loop over experts the temporaries of the busiest one do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

_NAMES = ((F, "grouped_mm"), (torch, "_grouped_mm"))


def spread(values: Any, experts: int) -> Any:
    """Return as many real indices of experts as `topk` gave values: each expert as often."""
    with unset_fake_temporarily():
        return (torch.arange(values.numel()) % experts).view(values.shape)


def is_routing(func: Any, out: Any) -> bool:
    """Return whether an operator chose indices by fake values, as routing does."""
    topk = func.overloadpacket is torch.ops.aten.topk
    return topk and isinstance(out[1], FakeTensor)


@contextmanager
def grouped_products() -> Iterator[None]:
    """Make the grouped product accept formats besides bfloat16, as the CUDA and CPU kernels do.

    PyTorch's shape function for it refuses them.
    """
    before = [(owner, name, getattr(owner, name)) for owner, name in _NAMES if hasattr(owner, name)]
    try:
        for owner, name, original in before:
            setattr(owner, name, _taking_all(original))
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def _taking_all(original: Any) -> Any:
    def grouped_mm(left: Any, right: Any, **others: Any) -> Any:
        if left.dtype == torch.bfloat16:
            return original(left, right, **others)
        return _Grouped.apply(left, right)

    return grouped_mm


class _Grouped(torch.autograd.Function):
    """Rows x in, by experts x in x out: allocates what PyTorch's own formula does."""

    @staticmethod
    def forward(ctx: Any, left: Any, right: Any) -> Any:
        """Keep of each factor what the gradient of the other wants, and give the product."""
        wants_left, wants_right = ctx.needs_input_grad
        ctx.layouts = [(factor.shape, factor.stride()) for factor in (left, right)]
        ctx.save_for_backward(left if wants_right else None, right if wants_left else None)
        return left.new_empty(left.shape[0], right.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        """Return the gradient of each factor, in its own layout."""
        return tuple(
            grad.new_empty_strided(*layout) if wanted else None
            for layout, wanted in zip(ctx.layouts, ctx.needs_input_grad, strict=True)
        )
