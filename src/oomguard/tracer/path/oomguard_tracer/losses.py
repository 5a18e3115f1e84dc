# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""The fused loss: logits chunk by chunk, never whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fuse(model: Any) -> None:
    """Make a transformers model compute its loss as Liger's fused linear cross entropy does."""
    head = model.get_output_embeddings()
    model.set_output_embeddings(_Deferred(head))

    def loss(logits: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        return _FusedLoss.apply(logits.reshape(-1, logits.shape[-1]), head.weight, shifted)

    model.loss_function = loss


class _Deferred(nn.Module):
    """Stands where the head was, and hands the hidden states on."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.weight = head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class _FusedLoss(torch.autograd.Function):
    """Chunks of rows such that their logits take about as much as the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        rows, width = hidden.shape
        chunk = _rows_per_chunk(rows, width, weight.shape[0])
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        losses = hidden.new_zeros(rows, dtype=torch.float32)
        for start in range(0, rows, chunk):
            part = hidden[start : start + chunk]
            logits = part @ weight.to(part.dtype).t()
            grad_hidden[start : start + chunk] = logits @ weight.to(part.dtype)
            if grad_weight is not None:
                grad_weight += (logits.t() @ part).to(grad_weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, Any, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight, None


def _rows_per_chunk(rows: int, width: int, vocabulary: int) -> int:
    share = -(-rows // -(-vocabulary // width))
    return 1 << max(0, share - 1).bit_length()
