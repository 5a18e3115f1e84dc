# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Linear layers with the storage of bitsandbytes', and the temporaries of its kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from torch import nn

from .recorder import Recorder

BLOCK = 64  # weights that share one quantization constant
NESTED_BLOCK = 256  # constants that share one constant of their own, under double quantization


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed."""

    keeps_input = False
    defensive_clone = False
    #: What the weight was before it was packed: it is unpacked to that, then cast.
    stored_dtype: torch.dtype | None = None
    tracer: Recorder | None = None

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.compute_dtype = compute_dtype
        self.bias = linear.bias

    def dequantized(self, like: torch.Tensor) -> torch.Tensor:
        """Return the weight as the kernel computes with it, and charge it to the quantization."""
        if self.tracer is None:
            return like.new_empty(self.out_features, self.in_features)
        with self.tracer.inside((self.tracer.here()[0], "quantization")):
            return self._dequantize(like)

    def _dequantize(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(self.out_features, self.in_features)


class Linear4bit(QuantizedLinear):
    """bitsandbytes' Linear4bit: two weights per byte, a constant per block of 64.

    bitsandbytes before 0.43.2 keeps the input of every layer until the graph is gone
    (`keeps_input`); PEFT clones the result before it adds the adapter's (`defensive_clone`).
    """

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype, *, double: bool) -> None:
        super().__init__(linear, compute_dtype)
        self.double = double
        elements = self.in_features * self.out_features
        device = linear.weight.device
        packed = torch.empty((elements + 1) // 2, 1, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        blocks = -(-elements // BLOCK)
        constants = torch.uint8 if double else torch.float32
        self.register_buffer("absmax", torch.empty(blocks, dtype=constants, device=device))
        if double:
            nested = -(-blocks // NESTED_BLOCK)
            self.register_buffer("nested_absmax", torch.empty(nested, device=device))
            self.register_buffer("nested_code", torch.empty(256, device=device))
        self.register_buffer("code", torch.empty(16, device=device))

    def _dequantize(self, like: torch.Tensor) -> torch.Tensor:
        if self.double:
            constants = like.new_empty(self.absmax.numel(), dtype=torch.float32)
        stored = self.stored_dtype or like.dtype
        weight = like.new_empty(self.out_features, self.in_features, dtype=stored)
        if self.double:
            del constants
        return weight.to(like.dtype)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Multiply in the computing format and give the result in the input's."""
        asked = value.dtype
        value = value.to(self.compute_dtype)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.to(self.compute_dtype)
            result = _Multiply4bit.apply(value, self, bias)
        result = result.to(asked)
        return result.clone() if self.defensive_clone else result


class _Multiply4bit(torch.autograd.Function):
    """What bitsandbytes' MatMul4Bit allocates: the weight dequantized in each direction."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, layer: Linear4bit, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.layer = layer
        # An attribute, not a saved tensor: backward does not let go of it.
        ctx.kept = value if layer.keeps_input and ctx.needs_input_grad[0] else None
        return F.linear(value, layer.dequantized(value), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return torch.matmul(grad, ctx.layer.dequantized(grad)), None, None


class Linear8bit(QuantizedLinear):
    """bitsandbytes' Linear8bitLt: one byte per weight, a float32 constant per row."""

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(linear, compute_dtype)
        device = linear.weight.device
        packed = torch.empty(self.out_features, self.in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("constants", torch.empty(self.out_features, device=device))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Multiply in int8."""
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.to(value.dtype)
            return _Multiply8bit.apply(value, self, bias)


class _Multiply8bit(torch.autograd.Function):
    """What bitsandbytes' MatMul8bitLt allocates: the input in int8, the weight in backward."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, layer: Linear8bit, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.layer = layer
        ctx.kept = value if ctx.needs_input_grad[0] else None
        flat = value.reshape(-1, value.shape[-1])
        half = flat.to(torch.float16)
        narrow = half.to(torch.int8)
        del half
        wide = narrow.new_empty(flat.shape[0], layer.out_features, dtype=torch.int32)
        result = wide.to(value.dtype)
        return (result if bias is None else result + bias).view(*value.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return torch.matmul(grad, ctx.layer.dequantized(grad)), None, None


def quantize(
    model: nn.Module, quantization: str, compute_dtype: torch.dtype, skip: tuple[str, ...]
) -> None:
    """Replace the linear layers of a model in place, but those whose name holds one of `skip`."""
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            full = f"{path}.{name}" if path else name
            if type(child) is nn.Linear and not any(part in full for part in skip):
                setattr(module, name, quantized(child, quantization, compute_dtype))


def quantized(linear: nn.Linear, quantization: str, compute_dtype: torch.dtype) -> nn.Module:
    """Return one linear layer with its weight packed."""
    if quantization == "int8":
        return Linear8bit(linear, compute_dtype)
    return Linear4bit(linear, compute_dtype, double=quantization.endswith("-double"))
