# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""What torch.compile makes of torchtune's layers: pointwise work in one kernel, run again backward.

What a layer keeps was measured with PyTorch's own partitioner (the backend
`aot_eager_decomp_partition`, torch 2.13): no fp32 copies of its norms but their inputs, no product
of the activation, all else as without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .torchao import LinearNF4


def compile_layers(layers: nn.Module) -> None:
    """Replace norms and gated products by their compiled kernels, and unpack NF4 in one."""
    for module in layers.modules():
        kind = type(module).__name__
        if kind == "RMSNorm":
            module.forward = _norm(module)
        elif kind == "FeedForward" and getattr(module, "w3", None) is not None:
            module.forward = _gated(module)
        elif isinstance(module, LinearNF4):
            module.compiled = True


def _norm(module: Any) -> Any:
    return lambda value: _Norm.apply(value, module.scale)


def _gated(module: Any) -> Any:
    return lambda value: module.w2(_Gate.apply(module.w1(value), module.w3(value)))


class _Norm(torch.autograd.Function):
    """Keeps the input in its own format, and a sum per row."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        sums = value.new_empty(value.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(value, sums, scale)
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        value, _sums, scale = ctx.saved_tensors
        wants_scale = ctx.needs_input_grad[1]
        return torch.empty_like(value), torch.empty_like(scale) if wants_scale else None


class _Gate(torch.autograd.Function):
    """Keeps both factors, and gives their gradients."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(up)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.empty_like(gate), torch.empty_like(up)


class CompiledLoss(torch.autograd.Function):
    """What Inductor makes of one chunk's loss: it keeps the logits and a sum per row."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:  # noqa: D102
        rows = [logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2)]
        ctx.save_for_backward(logits, *rows)
        return rows[0].sum()

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        return torch.empty_like(ctx.saved_tensors[0]), None
