# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Builds torchtune's own model on fake tensors, by the builder that the job's config names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from oomguard_tracer.built import Built, Depth, Unsupported, half, reduced
from oomguard_tracer.request import TraceRequest, Variant
from torch import nn

from .compiled import CompiledLoss, compile_layers
from .offloading import offloaded, spare
from .torchao import pack

STACK = "layers"
COMPONENT = "_component_"
BUILDERS = "torchtune.models."
#: Given as arguments of a builder, where the plan decides.
RANK, QUANTIZE = "lora_rank", "quantize_base"
CHUNKED = "torchtune.modules.loss.CEWithChunkedOutputLoss"
IGNORED = -100
ACTIVATIONS = "activations"


def build(request: TraceRequest, variant: Variant) -> Built:
    """Build the model of a request with a plan applied. Call it outside the fake mode.

    Raises:
        Unsupported: if torchtune is not installed, or the plan has no such form there.
    """
    if variant.tuning not in ("lora", "full"):
        raise Unsupported(f"tuning {variant.tuning!r} cannot be traced")
    if variant.offload - {ACTIVATIONS}:
        raise Unsupported("parameters on the host cannot be traced with torchtune")
    model = _model(request.config, variant)
    _angles(model)
    depth = _shorten(model, variant)
    _change_layers(model.layers, variant)
    if variant.tuning == "lora":
        peft = importlib.import_module("torchtune.modules.peft")
        peft.set_trainable_params(model, _adapter(model))
    if variant.checkpointing:
        _checkpoint(model)
    criterion = _criterion(model, variant)
    head = _head(model)

    def forward(batch: dict[str, Any]) -> Any:
        return model(tokens=batch["tokens"])

    if ACTIVATIONS in variant.offload:
        spare(head)
    called = offloaded(forward) if ACTIVATIONS in variant.offload else forward
    return Built(
        model=model, depths=(depth,), forward=called, batch=_batch(criterion), head=head
    )  # fmt: skip


def _model(config: dict[str, Any], variant: Variant) -> Any:
    """Call the builder; what it would pack is packed later, by layers that can be fake."""
    path, _, name = config[COMPONENT].rpartition(".")
    if not f"{path}.".startswith(BUILDERS):  # a plan runs no code that a config names
        raise Unsupported(f"only builders of {BUILDERS}* are traced, not {config[COMPONENT]!r}")
    arguments = {key: value for key, value in config.items() if key not in (COMPONENT, QUANTIZE)}
    if variant.lora is not None and RANK in arguments:
        arguments[RANK] = variant.lora.rank
    try:
        builder = getattr(importlib.import_module(path), name.replace("qlora_", "lora_"))
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"torchtune has no {config[COMPONENT]!r} here") from error
    before = torch.get_default_dtype()
    torch.set_default_dtype(half(variant.precision) or torch.float32)
    try:
        with torch.device("meta"):
            return builder(**arguments)
    finally:
        torch.set_default_dtype(before)


def _angles(model: nn.Module) -> None:
    """Build the tables of rotary embeddings, which need values and so cannot be on meta."""
    for module in model.modules():
        if getattr(module, "is_cache_built", True) is False:
            sizes = {"theta": (module.dim // 2,), "cache": (module.max_seq_len, module.dim // 2, 2)}
            for name, size in sizes.items():
                module.register_buffer(name, torch.empty(size, device="meta"), persistent=False)
            module.is_cache_built = True


def _shorten(model: Any, variant: Variant) -> Depth:
    if not isinstance(getattr(model, STACK, None), nn.ModuleList):
        raise Unsupported(f"torchtune's {type(model).__name__} cannot be traced")
    full = len(model.layers)
    built = full if variant.full_depth else reduced(full, 1)
    model.layers = model.layers[:built]
    return Depth(stack=STACK, full=full, built=built)


def _change_layers(layers: nn.Module, variant: Variant) -> None:
    if variant.quantization != "none":
        pack(layers)
    if variant.compiled:
        compile_layers(layers)


def _adapter(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".lora_a." in name or ".lora_b." in name or name.endswith(".magnitude")
    }


def _checkpoint(model: Any) -> None:
    training = importlib.import_module("torchtune.training")
    layer = importlib.import_module("torchtune.modules").TransformerSelfAttentionLayer
    training.set_activation_checkpointing(model, auto_wrap_policy={layer})


def _criterion(model: Any, variant: Variant) -> Callable[..., torch.Tensor]:
    if variant.loss_kernel != "fused":
        return nn.CrossEntropyLoss(ignore_index=IGNORED)
    path, name = CHUNKED.rsplit(".", 1)
    loss = getattr(importlib.import_module(path), name)()
    model.set_num_output_chunks(loss.num_output_chunks)
    if variant.compiled:
        loss.compute_cross_entropy = CompiledLoss.apply
    return loss  # type: ignore[no-any-return]


def _head(model: Any) -> nn.Module:
    """Return the output head; one that is tied holds a module that multiplies."""
    return model.output if isinstance(model.output, nn.Module) else model.output.linear


def _batch(criterion: Callable[..., torch.Tensor]) -> Any:
    def loss(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        last = torch.full((labels.shape[0], 1), IGNORED)
        labels = torch.hstack((labels[..., 1:], last))
        if not isinstance(logits, list):
            labels = labels.reshape(-1)
            logits = logits.reshape(-1, logits.size(-1))
        return criterion(logits, labels)

    def batch(_: Variant, lengths: tuple[int, ...]) -> dict[str, Any]:
        ids = torch.ones((len(lengths), max(lengths)), dtype=torch.int64)
        return {"tokens": ids, "labels": ids.clone(), "criterion": loss}

    return batch
