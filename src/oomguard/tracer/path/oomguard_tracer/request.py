"""The request as it comes in, with defaults where it says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRequest:
    """An adapter of low rank on some linear layers; without `targets`, the framework's default."""

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] | str | None = None
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One plan to trace: its memory choices, flat, in the words of oomguard's `Plan`."""

    id: str
    framework: str = "hf_trainer"
    micro_batch: int = 1
    accumulation: int = 1
    sequence_length: int = 2048
    image_pixels: int | None = None
    checkpointing: bool = False
    precision: str = "bf16-mixed"
    quantization: str = "none"
    tuning: str = "full"
    frozen: frozenset[str] = frozenset()
    sharding: str = "none"
    offload: frozenset[str] = frozenset()
    optimizer: str = "adamw_torch"
    loss_kernel: str = "eager"
    lora: LoraRequest | None = None
    new_tokens: int = 0
    train_embeddings: bool = False
    foreach: bool = True
    max_grad_norm: float | None = 1.0
    attention: str = "sdpa"
    lengths: tuple[tuple[int, ...], ...] | None = None
    media: dict[str, Any] = field(default_factory=dict)
    world: int = 1
    weights_dtype: str | None = None
    trainable_dtype: str | None = None
    kbit_float32: bool | None = None
    use_reentrant: bool | None = None
    bitsandbytes_keeps_input: bool = False
    stable_embedding: bool = False
    use_cache: bool = False
    step_in_backward: bool = False
    fused: bool = False
    compiled: bool = False
    eval_only: bool = False
    steps: int = 2
    cuda: bool = True
    full_depth: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One model and the plans to trace on it."""

    family: str
    config: dict[str, Any]
    model_class: str | None
    trust_remote_code: bool
    variants: tuple[Variant, ...]
    capacity_bytes: int | None


def parse(document: dict[str, Any]) -> TraceRequest:
    """Read a request.

    Raises:
        KeyError, TypeError, ValueError: if it is not one.
    """
    if document.get("v") != 1:
        raise ValueError(f"version {document.get('v')!r} of the request is not 1")
    model = document["model"]
    return TraceRequest(
        family=model["family"],
        config=dict(model["config"]),
        model_class=model.get("class"),
        trust_remote_code=bool(document.get("trust_remote_code", False)),
        variants=tuple(_variant(item) for item in document["variants"]),
        capacity_bytes=document.get("capacity_bytes"),
    )


def _variant(item: dict[str, Any]) -> Variant:
    known = Variant.__dataclass_fields__
    chosen = {**item.get("plan", {}), **item.get("recipe", {})}
    values = {k: v for k, v in chosen.items() if k in known and v is not None}
    values.pop("id", None)
    if isinstance(values.get("lora"), dict):
        values["lora"] = _lora(values["lora"])
    for name in ("frozen", "offload"):
        values[name] = frozenset(values.get(name, ()))
    if "lengths" in values:
        values["lengths"] = tuple(tuple(int(n) for n in batch) for batch in values["lengths"])
    return Variant(id=str(item["id"]), **values)


def _lora(item: dict[str, Any]) -> LoraRequest:
    targets = item.get("targets")
    if isinstance(targets, list):
        targets = tuple(targets)
    return LoraRequest(
        rank=int(item["rank"]),
        alpha=float(item.get("alpha") or 2 * int(item["rank"])),
        targets=targets,
        dropout=float(item.get("dropout") or 0.0),
        modules_to_save=tuple(item.get("modules_to_save") or ()),
    )
