"""Read and check a trace request; docs/tracer-protocol.md describes its fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: cuBLAS's default workspace before Hopper: ":4096:2:16:8" KiB (CUBLAS_WORKSPACE_CONFIG, PyTorch's
#: "CUDA semantics" notes).
CUBLAS_WORKSPACE_BYTES = (2 * 4096 + 8 * 16) << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRequest:
    """A LoRA adapter; without `targets`, the library's default."""

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] | str | None = None
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()
    dora: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveRequest:
    """A loss of a framework's own: rows of each sample, models, its function."""

    loss: str
    rows: int = 1
    head: str = "vocabulary"
    labels: int = 1
    reference: str = "none"
    reference_quantization: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One plan to trace: the fields of `plan` and `recipe` in one place."""

    id: str
    loop: str = "trainer"
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
    objective: ObjectiveRequest | None = None
    new_tokens: int = 0
    train_embeddings: bool = False
    foreach: bool = True
    max_grad_norm: float | None = 1.0
    attention: str = "sdpa"
    lengths: tuple[tuple[int, ...], ...] | None = None
    media: dict[str, Any] = field(default_factory=dict)
    weights_dtype: str | None = None
    trainable_dtype: str | None = None
    kbit_float32: bool = False
    raised: tuple[str, ...] = ()
    use_reentrant: bool = False
    checkpoints_trained_layers: bool = False
    bitsandbytes_keeps_input: bool = False
    stable_embedding: bool = False
    use_cache: bool = False
    step_in_backward: bool = False
    fused: bool = False
    compiled: bool = False
    eval_only: bool = False
    steps: int = 2
    cuda: bool = True
    workspace_bytes: int = CUBLAS_WORKSPACE_BYTES
    full_depth: bool = False

    @property
    def rows(self) -> int:
        """Rows of the forward pass for each sample."""
        return self.objective.rows if self.objective else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One model and the plans to trace on it."""

    family: str
    config: dict[str, Any]
    variants: tuple[Variant, ...]
    capacity_bytes: int | None


def parse(document: dict[str, Any]) -> TraceRequest:
    """Read a request.

    Raises:
        KeyError, TypeError, ValueError: if a key is missing or unknown, or a value is invalid.
    """
    if document.get("v") != 1:
        raise ValueError(f"version {document.get('v')!r} of the request is not 1")
    _refuse_unknown("the request", document, {"v", "model", "variants", "capacity_bytes"})
    model = document["model"]
    _refuse_unknown("model", model, {"family", "config"})
    return TraceRequest(
        family=model["family"],
        config=dict(model["config"]),
        variants=tuple(_variant(item) for item in document["variants"]),
        capacity_bytes=document.get("capacity_bytes"),
    )


def _variant(item: dict[str, Any]) -> Variant:
    _refuse_unknown("a variant", item, {"id", "plan", "recipe"})
    chosen = {**item.get("plan", {}), **item.get("recipe", {})}
    _refuse_unknown("plan and recipe", chosen, set(Variant.__dataclass_fields__) - {"id"})
    values = {k: v for k, v in chosen.items() if v is not None}
    if isinstance(values.get("lora"), dict):
        values["lora"] = _lora(values["lora"])
    if isinstance(values.get("objective"), dict):
        known = set(ObjectiveRequest.__dataclass_fields__)
        _refuse_unknown("objective", values["objective"], known)
        values["objective"] = ObjectiveRequest(**values["objective"])
    for name in ("frozen", "offload"):
        values[name] = frozenset(values.get(name, ()))
    values["raised"] = tuple(values.get("raised", ()))
    if "lengths" in values:
        values["lengths"] = tuple(tuple(int(n) for n in batch) for batch in values["lengths"])
    return Variant(id=str(item["id"]), **values)


def _refuse_unknown(place: str, found: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"unknown keys in {place}: {', '.join(unknown)}")


def _lora(item: dict[str, Any]) -> LoraRequest:
    _refuse_unknown("lora", item, set(LoraRequest.__dataclass_fields__))
    targets = item.get("targets")
    if isinstance(targets, list):
        targets = tuple(targets)
    return LoraRequest(
        rank=int(item["rank"]),
        alpha=float(item.get("alpha") or 2 * int(item["rank"])),
        targets=targets,
        dropout=float(item.get("dropout") or 0.0),
        modules_to_save=tuple(item.get("modules_to_save") or ()),
        dora=bool(item.get("dora")),
    )
