# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Builds LitGPT's GPT on fake tensors as its finetuning scripts would."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from oomguard_tracer.built import Built, Depth, Unsupported, half, mixed, reduced
from oomguard_tracer.quantized import Linear8bit, QuantizedLinear, quantize
from oomguard_tracer.request import LoraRequest, TraceRequest, Variant
from torch import nn
from torch.utils.checkpoint import checkpoint

#: The package's name now, and before 2024.
PACKAGES = ("litgpt", "lit_gpt")
HEAD_CHUNK = 128  # rows of logits computed at once
TARGETS = ("query", "key", "value", "projection", "mlp", "head")
DEFAULT_TARGETS = ("query", "value")


def build(request: TraceRequest, variant: Variant) -> Built:
    """Build the model of a request with a plan applied. Call it outside the fake mode.

    Raises:
        Unsupported: if LitGPT is not installed, or the plan has no such form there.
    """
    package = _package()
    is_lora = variant.tuning == "lora"
    if not is_lora and variant.tuning != "full":
        raise Unsupported(f"tuning {variant.tuning!r} cannot be traced")
    module = importlib.import_module(f"{package}.{'lora' if is_lora else 'model'}")
    config, depth = _config(module, request, variant)
    with torch.device("meta"):
        model = module.GPT(config)
    if is_lora:
        module.mark_only_lora_as_trainable(model)
    model.max_seq_length = variant.sequence_length
    narrow = half(variant.precision)
    whole = torch.float32 if narrow is None or mixed(variant.precision) else narrow
    model.to(whole)
    if variant.quantization != "none":
        quantize(model, variant.quantization, whole, skip=())
        _as_fabric(model, variant)
    kept = _stable_embedding(model, variant) if variant.quantization != "none" else None
    if variant.checkpointing:
        _checkpoint(model)
    loss = importlib.import_module(f"{package}.utils").chunked_cross_entropy
    chunk = HEAD_CHUNK if is_lora else 0
    return Built(
        model=model, depths=(depth,), forward=_forward(model, whole, chunk, kept),
        batch=_batch(loss, whole=chunk == 0), head=model.lm_head,
        late=() if kept is None else ("transformer.wte.",),
    )  # fmt: skip


def _package() -> str:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise Unsupported("litgpt is not installed here")


def _config(module: Any, request: TraceRequest, variant: Variant) -> tuple[Any, Depth]:
    known = {field.name for field in fields(module.Config)}
    whole = request.config
    if "n_layer" not in whole and "name" in whole:  # one of LitGPT's own
        whole = vars(module.Config.from_name(whole["name"]))
    values = {name: value for name, value in whole.items() if name in known}
    if variant.lora is not None and variant.tuning == "lora":
        values |= _adapter(variant.lora, known)
    full = int(whole["n_layer"])
    built = full if variant.full_depth else reduced(full, 1)
    config = module.Config(**{**values, "n_layer": built})
    return config, Depth(stack="transformer.h", full=full, built=built)


def _adapter(lora: LoraRequest, known: set[str]) -> dict[str, Any]:
    """Return the adapter's settings as this version of LitGPT does."""
    old = "to_query" in known
    chosen = DEFAULT_TARGETS if lora.targets is None else lora.targets
    every = chosen in ("all-linear", "all")
    prefix = "" if old else "lora_"
    values: dict[str, Any] = {
        f"{prefix}r": lora.rank,
        f"{prefix}alpha": lora.alpha,
        f"{prefix}dropout": lora.dropout,
    }
    for target in TARGETS:
        name = f"to_{target}" if old else f"lora_{target}"
        values[name] = (every and target != "head") or target in chosen
    return values


def _as_fabric(model: nn.Module, variant: Variant) -> None:
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.keeps_input = variant.bitsandbytes_keeps_input
            module.stored_dtype = torch.float16  # Fabric packs from this, whatever the precision
        if isinstance(module, Linear8bit):  # has_fp16_weights is on: both copies stay
            packed = module.weight
            wide = torch.empty(packed.shape, dtype=torch.float16, device=packed.device)
            module.register_buffer("wide", wide)


def _stable_embedding(model: Any, variant: Variant) -> nn.Module | None:
    """Replace the embedding of a quantized run; the optimizer keeps the old one (0.5)."""
    if not variant.stable_embedding:
        return None
    old = model.transformer.wte
    rows, width = old.weight.shape
    with torch.device("meta"):
        model.transformer.wte = _StableEmbedding(rows, width).to(old.weight.dtype)
    model.register_module("replaced_embedding", old)
    return old  # type: ignore[no-any-return]


class _StableEmbedding(nn.Embedding):
    """bitsandbytes' embedding with a layer norm behind it."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(ids)).to(self.weight.dtype)


def _checkpoint(model: Any) -> None:
    """Checkpoint each block, as LitGPT does on several devices."""
    for block in model.transformer.h:
        block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return again


def _forward(
    model: nn.Module, whole: torch.dtype, chunk: int, _: nn.Module | None
) -> Callable[[dict[str, Any]], Any]:
    """Run the model under Fabric: its default dtype inside, its outputs in float32."""

    def forward(batch: dict[str, Any]) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(whole)
        try:
            logits = model(batch["ids"], lm_head_chunk_size=chunk) if chunk else model(batch["ids"])
        finally:
            torch.set_default_dtype(before)
        if isinstance(logits, list):
            return [part.to(torch.float32) for part in logits]
        return logits.to(torch.float32)

    return forward


def _batch(loss: Callable[..., torch.Tensor], *, whole: bool) -> Any:
    def criterion(logits: Any, batch: dict[str, Any]) -> torch.Tensor:
        targets = batch["labels"][..., 1:]
        if whole:
            return loss(logits[..., :-1, :], targets)
        logits[-1] = logits[-1][..., :-1, :]
        return loss(logits, targets)

    def batch(_: Variant, lengths: tuple[int, ...]) -> dict[str, Any]:
        ids = torch.ones((len(lengths), max(lengths)), dtype=torch.int64)
        return {"ids": ids, "labels": ids.clone(), "criterion": criterion}

    return batch
