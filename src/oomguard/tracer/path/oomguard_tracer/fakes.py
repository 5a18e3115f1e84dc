# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Turns a module built on the meta device into one of fake tensors."""

from __future__ import annotations

import torch
from torch import nn

#: Asked for two times in three of all that a mode is asked: most operators look at it.
DEVICE = torch.ops.prim.device.default


def device_of(tensor: torch.Tensor) -> torch.device:
    """Return the device of a fake tensor as its own mode would, bypassing the modes."""
    mode = getattr(tensor, "fake_mode", None)
    if mode is None:
        return DEVICE(tensor)
    return torch.device("meta") if mode.in_kernel_invocation else tensor.fake_device


def materialize(module: nn.Module) -> nn.Module:
    """Replace every meta tensor by a fake one, ties kept. Call it under the fake mode."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = _made(parameter, made)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = _made(buffer, made)
    return module


def _made(old: torch.Tensor, made: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    if id(old) not in made:
        new = torch.empty_strided(tuple(old.shape), old.stride(), dtype=old.dtype, device="cpu")
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        made[id(old)] = (old, new)
    return made[id(old)][1]
