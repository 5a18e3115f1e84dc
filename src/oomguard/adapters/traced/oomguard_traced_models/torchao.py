# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""torchtune's 4-bit layers: torchao's NF4 tensors, and what unpacking one takes.

Source: torchao 0.15, dtypes/nf4tensor.py (from_tensor, get_original_weight, LinearNF4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from oomguard_tracer.built import Unsupported
from oomguard_tracer.quantized import BLOCK, NESTED_BLOCK, QuantizedLinear
from torch import nn

LEVELS = 16


class LinearNF4(QuantizedLinear):
    """A frozen layer of NF4: two weights per byte, an int8 scaler per block of 64.

    A block of scalers shares one factor; factors, mean and levels are in the weight's own format.
    Compiled, unpacking is one kernel; otherwise torchao unpacks by plain operators, whose int64
    indices take four times the unpacked weight.
    """

    compiled = False

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None, like: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = inputs, outputs, bias
        elements = inputs * outputs
        if elements % (BLOCK * NESTED_BLOCK):
            raise Unsupported(f"torchao packs no matrix of {outputs} x {inputs}")
        dtype, device = like.dtype, like.device
        packed = torch.empty(elements // 2, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        blocks = elements // BLOCK
        sizes = {"absmax": (blocks, torch.int8), "nested_absmax": (blocks // NESTED_BLOCK, dtype),
                 "absmax_mean": (1, dtype), "code": (LEVELS, dtype)}  # fmt: skip
        for name, (size, kind) in sizes.items():
            self.register_buffer(name, torch.empty(size, dtype=kind, device=device))

    def _dequantize(self, like: torch.Tensor) -> torch.Tensor:
        stored = self.code.dtype
        if self.compiled:
            return like.new_empty(self.out_features, self.in_features, dtype=stored).to(like.dtype)
        return self._by_operators(like, stored).to(like.dtype)

    def _by_operators(self, like: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
        half = self.in_features * self.out_features // 2
        indices = []
        for _ in range(2):
            nibbles = like.new_empty(half, dtype=torch.uint8)
            indices.append(like.new_empty(nibbles.numel(), dtype=torch.int64))
            del nibbles
        levels = [like.new_empty(index.numel(), dtype=stored) for index in indices]
        scalers = like.new_empty(self.absmax.numel(), dtype=stored) + 0.0
        scaled = []
        for level in levels:
            repeated = like.new_empty(half, dtype=stored)
            scaled.append(level * repeated)
            del repeated
        del scalers
        return torch.stack(scaled, dim=-1).reshape(self.out_features, self.in_features)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Multiply by the unpacked weight, of which nothing is kept."""
        result = _MultiplyNF4.apply(value, self)
        return result if self.bias is None else result + self.bias


class _MultiplyNF4(torch.autograd.Function):
    """What torchao's LinearNF4 allocates: it saves the packed weight alone."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, layer: LinearNF4) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(value, layer.dequantized(value))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.dequantized(grad), None


def pack(layers: nn.Module) -> None:
    """Replace every frozen matrix of torchtune's layers by a packed one; keep adapters."""
    for module in list(layers.modules()):
        kind = type(module).__name__
        if kind == "LoRALinear":
            _pack_adapted(module)
        elif kind == "DoRALinear":
            raise Unsupported("DoRA on 4-bit layers cannot be traced")
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not name.startswith("lora_"):
                twin = LinearNF4(child.in_features, child.out_features, child.bias, child.weight)
                setattr(module, name, twin)


def _pack_adapted(module: Any) -> None:
    """Make an adapted matrix multiply by its packed weight."""
    module.base = LinearNF4(module.in_dim, module.out_dim, module.bias, module.weight)
    del module.weight
    module.register_parameter("bias", None)

    def forward(value: torch.Tensor) -> torch.Tensor:
        out = module.base(value)
        added = module.lora_b(module.lora_a(module.dropout(value)))
        return out + (module.alpha / module.rank) * added

    module.forward = forward
