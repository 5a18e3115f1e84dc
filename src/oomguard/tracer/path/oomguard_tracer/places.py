# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Tracks which repeated layer, tower or head runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .built import Built
from .recorder import NOWHERE, Layer, Place, Recorder


def attach(tracer: Recorder, built: Built) -> None:
    """Hook the modules that give a place, and adopt the parameters and buffers."""
    _follow_head(tracer, built)
    for path, module in built.model.named_modules():
        place = _place(path, built)
        if place is not None:
            _hook(tracer, module, place)
    _adopt(tracer, built)


def _follow_head(tracer: Recorder, built: Built) -> None:
    """From the head on, until the next forward pass, all is logits and loss."""

    def at_root(_: nn.Module, __: Any) -> None:
        tracer.rest(NOWHERE)

    def at_head(_: nn.Module, __: Any) -> None:
        tracer.rest((None, "logits_and_loss"))

    built.model.register_forward_pre_hook(at_root)
    if built.head is not None:
        built.head.register_forward_pre_hook(at_head)


def layer_of(path: str, built: Built) -> Layer | None:
    """Find the repeated layer that a module or parameter lies in; PEFT prefixes the paths."""
    for depth in built.depths:
        index = _index(path, depth.stack)
        if index is not None:
            return depth.stack, index // depth.period
    return None


def _index(path: str, stack: str) -> int | None:
    at = path.find(stack + ".")
    if at < 0 or (at > 0 and path[at - 1] != "."):
        return None
    index = path[at + len(stack) + 1 :].split(".", maxsplit=1)[0]
    return int(index) if index.isdigit() else None


def _place(path: str, built: Built) -> Place | None:
    tower = next((term for name, term in built.towers.items() if path.endswith(name)), None)
    if tower is not None:
        return (None, tower)
    layer = layer_of(path, built)
    if layer is None or not path.endswith(f"{layer[0]}.{path.rsplit('.', 1)[-1]}"):
        return None
    return (layer, _tower(path, built))


def _tower(path: str, built: Built) -> str | None:
    """Return the term of the tower that a module or parameter lies in."""
    return next((t for name, t in built.towers.items() if f".{name}." in f".{path}"), None)


def _hook(tracer: Recorder, module: nn.Module, place: Place) -> None:
    def before(_: nn.Module, __: Any) -> None:
        tracer.enter(place)

    def after(_: nn.Module, __: Any, ___: Any) -> None:
        tracer.leave()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


def _adopt(tracer: Recorder, built: Built) -> None:
    trained_base = set(_trained_embeddings(built.model))
    for path, parameter in built.model.named_parameters():
        layer = layer_of(path, built)
        tracer.owns(parameter, layer)
        tracer.adopt(parameter, _term(path, parameter, built, trained_base), layer)
    for path, buffer in built.model.named_buffers():
        quantized = "absmax" in path or path.endswith(".code")
        tracer.adopt(buffer, "quantization" if quantized else "weights", layer_of(path, built))


def _term(path: str, parameter: torch.Tensor, built: Built, trained: set[int]) -> str:
    if id(parameter) in trained:
        return "trained_embeddings"
    return _tower(path, built) or "weights"


def _trained_embeddings(model: nn.Module) -> list[int]:
    """List the matrices over the vocabulary that are trained in full beside an adapter."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return []
    return [
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name and parameter.squeeze().dim() > 1
    ]


def trained_terms(model: nn.Module) -> dict[int, str]:
    """Return the term of the gradients and states of parameters that have a special one."""
    return dict.fromkeys(_trained_embeddings(model), "trained_embeddings")
