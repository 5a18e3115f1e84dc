# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Low-rank adapters: PEFT's own where it is installed, otherwise an equivalent."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .built import Unsupported
from .quantized import QuantizedLinear
from .request import LoraRequest

#: What makes a single target a regular expression instead of a name.
_PATTERN = re.compile(r"[\\(\[|*+^$?]")


def adapt(model: nn.Module, lora: LoraRequest, targets: tuple[str, ...]) -> nn.Module:
    """Add the adapter; give the model to call, which may wrap the one that came in.

    `targets` are full names of linear layers.

    Raises:
        Unsupported: if there is no layer to adapt.
    """
    if not targets:
        raise Unsupported(f"no linear layer matches the adapter's targets {lora.targets!r}")
    if importlib.util.find_spec("peft") is None:
        if lora.dora:
            raise Unsupported("DoRA is PEFT's, which this Python does not have")
        return _own(model, lora, targets)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.defensive_clone = True
    with warnings.catch_warnings(), _without_bitsandbytes():
        warnings.simplefilter("ignore")
        import peft  # noqa: PLC0415  installed in some jobs' Pythons only

        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(targets),
            modules_to_save=list(lora.modules_to_save) or None,
            **({"use_dora": True} if lora.dora else {}),
        )
        if lora.dora:
            _unpack_for_dora()
        return peft.get_peft_model(model, config)


def _unpack_for_dora() -> None:
    """Have DoRA unpack the quantized layers of a trace as it does bitsandbytes'."""
    from peft.tuners.lora import dora  # noqa: PLC0415  installed in some jobs' Pythons only

    theirs = dora.dequantize_module_weight
    if getattr(theirs, "is_ours", False):
        return

    def unpacked(module: Any) -> Any:
        if not isinstance(module, QuantizedLinear):
            return theirs(module)
        stored = module.stored_dtype or module.compute_dtype
        return module.dequantized(module.weight.new_empty(0, dtype=stored))

    unpacked.is_ours = True  # type: ignore[attr-defined]
    dora.dequantize_module_weight = unpacked


@contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    """Keep PEFT from importing bitsandbytes, which takes a second and wraps no layer of ours."""
    find = importlib.util.find_spec

    def finding(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else find(name, package)

    importlib.util.find_spec = finding
    try:
        yield
    finally:
        importlib.util.find_spec = find


def targets(
    model: nn.Module, lora: LoraRequest, head: nn.Module | None, frozen: tuple[str, ...]
) -> tuple[str, ...]:
    """List the linear layers to adapt: all but the head and frozen towers, or those named."""
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    wanted = lora.targets or "all-linear"
    names = (wanted,) if isinstance(wanted, str) else wanted
    if names in (("all-linear",), ("all",)):
        return tuple(
            name
            for name, module in linear
            if module is not head and not any(f".{part}." in f".{name}." for part in frozen)
        )
    if len(names) == 1 and _PATTERN.search(names[0]):  # PEFT matches it with whole names
        return tuple(name for name, _ in linear if re.fullmatch(names[0], name))
    return tuple(
        name for name, _ in linear if any(name == one or name.endswith(f".{one}") for one in names)
    )


def _own(model: nn.Module, lora: LoraRequest, names: tuple[str, ...]) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chosen = set(names)
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if (f"{path}.{name}" if path else name) in chosen:
                setattr(module, name, LoraLinear(child, lora))
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in lora.modules_to_save:
            module.requires_grad_(True)
    return model


class LoraLinear(nn.Module):
    """A frozen linear layer beside a trained pair of narrow ones, kept in float32."""

    def __init__(self, base: nn.Module, lora: LoraRequest) -> None:
        super().__init__()
        self.off = False
        self.base_layer = base
        self.scaling = lora.alpha / lora.rank
        self.dropout = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()
        inputs, outputs = _widths(base)
        device = next(base.parameters()).device
        self.lora_A = nn.Linear(inputs, lora.rank, bias=False, device=device)
        self.lora_B = nn.Linear(lora.rank, outputs, bias=False, device=device)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Add the adapter's result to the frozen layer's."""
        result = self.base_layer(value)
        if self.off:
            return result
        narrow: Any = value.to(self.lora_A.weight.dtype)
        if isinstance(self.base_layer, QuantizedLinear):
            result = result.clone()
            narrow = value if torch.is_autocast_cpu_enabled() else narrow
        added = self.lora_B(self.lora_A(self.dropout(narrow))) * self.scaling
        return (result + added).to(result.dtype)


def _widths(base: nn.Module) -> tuple[int, int]:
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    rows, columns = base.weight.shape
    return rows, columns
