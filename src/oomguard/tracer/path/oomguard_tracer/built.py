# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""A model ready to be traced, with what the run has to know about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .request import Variant

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
#: Gives the arguments of the forward pass for one micro batch of the given lengths.
Batch = Callable[[Variant, tuple[int, ...]], dict[str, Any]]


class Unsupported(Exception):  # noqa: N818  the request asks for what cannot be traced
    """What was asked for cannot be traced: the analytic estimate has to answer."""


@dataclass(slots=True, kw_only=True)
class Depth:
    """The repeated layers: how many the model has, how many were built, how they repeat."""

    stack: str
    full: int
    built: int
    period: int = 1

    @property
    def missing(self) -> int:
        """Count the periods that were left out."""
        return (self.full - self.built) // self.period


@dataclass(slots=True, kw_only=True)
class Built:
    """A model on fake tensors; `forward(batch)` runs it as its framework would.

    `late` are the beginnings of names of parameters that came after the optimizer was made: they
    have gradients, which nobody uses or clears.
    """

    model: nn.Module
    depths: tuple[Depth, ...]
    forward: Callable[[dict[str, Any]], Any]
    batch: Batch
    towers: dict[str, str] = field(default_factory=dict)
    head: nn.Module | None = None
    late: tuple[str, ...] = ()


def half(precision: str) -> torch.dtype | None:
    """Return the 16-bit format of a precision, None for fp32."""
    return None if precision == "fp32" else DTYPES[precision[:4]]


def mixed(precision: str) -> bool:
    """Return whether the weights are wider than what is computed with."""
    return precision.endswith("-mixed")


def autocast(variant: Variant) -> Any:
    """Return the context that a mixed precision computes in; it keeps its casts until it ends."""
    dtype = half(variant.precision)
    if dtype is None or not mixed(variant.precision):
        return nullcontext()
    return torch.autocast("cpu", dtype=dtype)


def reduced(full: int, period: int) -> int:
    """Choose how many layers to build: whole periods at both ends and two alike between them."""
    least = 4 * period + full % period
    return min(full, least)
