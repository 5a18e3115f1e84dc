# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Makes fake CPU tensors use the operators that CUDA would use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know

HALF = (torch.float16, torch.bfloat16)
#: Operators that CUDA's autocast runs in float32 and the CPU's does not ("Automatic Mixed
#: Precision package", PyTorch's documentation).
FLOAT32 = (
    (F, ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss",
         "mse_loss", "l1_loss", "smooth_l1_loss", "cosine_similarity", "softplus")),
    (torch, ("softmax", "log_softmax", "exp", "log", "pow", "rsqrt", "reciprocal")),
    (torch.Tensor, ("softmax", "log_softmax", "exp", "log", "pow", "__pow__", "rsqrt",
                    "reciprocal")),
)  # fmt: skip
FLASH_HEAD_LIMIT = 256


@contextmanager
def cuda_operators() -> Iterator[None]:
    """Replace what the CPU would run by CUDA's choice: dropout, attention, autocast's float32.

    By name and not by a function mode, which is suspended where a checkpoint runs again.
    """
    changed: list[tuple[Any, str, Any]] = [
        (F, "dropout", dropout),
        (F, "scaled_dot_product_attention", attention),
    ]
    for owner, names in FLOAT32:
        changed += [(owner, name, _widened(getattr(owner, name))) for name in names]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _widened(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def widened(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_cpu_enabled():
            args = tuple(_float32(value) for value in args)
        return function(*args, **kwargs)

    return widened


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in HALF:
        return value.float()
    return value


def dropout(
    tensor: torch.Tensor,
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002, RUF100  the signature that it replaces
    inplace: bool = False,  # noqa: ARG001, FBT001, FBT002, RUF100
) -> torch.Tensor:
    """CUDA's fused dropout keeps a boolean mask."""
    return torch.native_dropout(tensor, p, True)[0] if training and p > 0 else tensor


def attention(  # noqa: PLR0917  the signature that it replaces
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,  # noqa: ARG001, FBT001, FBT002, RUF100  the signature that it replaces
    *,
    scale: float | None = None,  # noqa: ARG001
    enable_gqa: bool = False,  # noqa: ARG001
) -> torch.Tensor:
    """Run the flash kernel if its conditions hold, else the memory-efficient one."""
    if torch.is_autocast_cpu_enabled():
        half = torch.get_autocast_dtype("cpu")
        query, key, value = (tensor.to(half) for tensor in (query, key, value))
    width = query.shape[-1]
    flash = attn_mask is None and query.dtype in HALF and width <= FLASH_HEAD_LIMIT
    if not flash and key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    missing = -width % 8
    if missing:
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
    bias = None if flash else _bias(query, key, attn_mask)
    out = _Attention.apply(query, key, value, bias, flash)
    return out[..., :width] if missing else out


class _Attention(torch.autograd.Function):
    """What CUDA's fused kernels keep and take: inputs, output and row sums; no score matrix."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd functions take positions only
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        flash: bool,
    ) -> torch.Tensor:
        out = _rows_first(query, value.shape[-1])
        batch, heads, rows, _ = query.shape
        sums = query.new_empty((batch, heads, rows), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, sums)
        ctx.flash = flash
        return out

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        temporary = (_flash_temporaries if ctx.flash else _efficient_temporaries)(query)
        grad_query = _rows_first(query, query.shape[-1])
        grad_key = _rows_first(key, key.shape[-1], heads=query.shape[1])
        grad_value = _rows_first(value, value.shape[-1], heads=query.shape[1])
        del temporary
        return grad_query, _grouped(grad_key, key), _grouped(grad_value, value), None, None


def _rows_first(like: torch.Tensor, width: int, heads: int | None = None) -> torch.Tensor:
    """Return an empty (batch, heads, rows, width), laid out by rows as the kernels do."""
    batch, own, rows, _ = like.shape
    return like.new_empty((batch, rows, heads or own, width)).transpose(1, 2)


def _grouped(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum a gradient over the query heads that share a key head."""
    if grad.shape[1] == like.shape[1]:
        return grad
    return grad.unflatten(1, (like.shape[1], -1)).sum(2)


def _flash_temporaries(query: torch.Tensor) -> list[torch.Tensor]:
    """Float32 query gradient and row sums, rows rounded up to 128 and widths to 32."""
    batch, heads, rows, width = query.shape
    rows, width = -(-rows // 128) * 128, -(-width // 32) * 32
    sums = query.new_empty((batch, heads, rows), dtype=torch.float32)
    return [sums, query.new_empty((batch, heads, rows, width), dtype=torch.float32)]


def _efficient_temporaries(query: torch.Tensor) -> list[torch.Tensor]:
    """Float32 row sums, and a float32 query gradient where the input is narrower."""
    batch, heads, rows, width = query.shape
    sums = [query.new_empty((batch, heads, rows), dtype=torch.float32)]
    if query.dtype != torch.float32:
        sums.append(query.new_empty((batch, heads, rows, width), dtype=torch.float32))
    return sums


def _bias(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Turn a mask into the additive bias that the kernel wants, its rows aligned."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype)
        mask = torch.where(mask, zero, torch.full((), -math.inf, dtype=query.dtype))
    missing = -mask.shape[-1] % 16
    if missing:
        mask = F.pad(mask, (0, missing))[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
