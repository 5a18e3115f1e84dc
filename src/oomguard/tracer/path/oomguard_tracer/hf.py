# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Builds a transformers model on fake tensors as its framework would load it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import lora, media, objectives, towers
from .batches import causal
from .built import DTYPES, Built, Depth, Unsupported, half, mixed, reduced
from .losses import fuse
from .quantized import quantize
from .request import TraceRequest, Variant

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
#: The token that a scored sample ends before; none of the traced batches holds it.
PADDING = 0
PROJECTORS = ("visual.merger", "multi_modal_projector", "aligner", "connector")


def build(request: TraceRequest, variant: Variant) -> Built:
    """Build the model of a request with a plan applied. Call it outside the fake mode.

    Raises:
        Unsupported: if this transformers has no such model, or the plan no such form.
    """
    config, depth = _config(request, variant)
    tower = None if variant.full_depth else towers.shorten(config)
    with torch.device("meta"):
        model = _model(request, variant, config)
    if variant.cuda and variant.attention != "eager":
        media.few_windows(model)
    _resize(model, variant)
    model.to(_weights_dtype(variant))
    depth.stack = towers.stack(model, depth.built, tower=False)
    if tower is not None:
        tower.stack = towers.stack(model, tower.built, tower=True)
    depths = (depth,) if tower is None else (depth, tower)
    media_terms = {name: term for name, term in towers.TERMS.items() if _has(model, name)}
    head = model.get_output_embeddings() or getattr(model, "score", None)
    _quantize(model, variant)
    _checkpoint(model, variant)
    called = _train(model, variant, head, media_terms)
    _raise(model, variant)
    if variant.objective is not None:
        reference = _reference(request, variant)
        step = objectives.step(called, model, reference, variant, variant.objective)
        alike = _depth_of_reference(depth) if reference is not None else ()
        return Built(
            model=step, depths=(*alike, *depths), forward=step, batch=causal(config),
            towers=media_terms, head=step.head,
        )  # fmt: skip
    if variant.loss_kernel == "fused":
        fuse(model)
    return Built(
        model=called, depths=depths, forward=_forward(called, variant), batch=causal(config),
        towers=media_terms, head=model.get_output_embeddings(),  # PEFT may have wrapped it
    )  # fmt: skip


def _reference(request: TraceRequest, variant: Variant) -> Any:
    """Build the frozen copy that a loss compares with; None if there is none."""
    if variant.objective is None or variant.objective.reference != "model":
        return None
    config, _ = _config(request, variant)
    if not variant.full_depth:
        towers.shorten(config)
    with torch.device("meta"):
        model = _model(request, variant, config)
    _resize(model, variant)
    model.to(_weights_dtype(variant))
    stored = variant.objective.reference_quantization or variant.quantization
    _quantize(model, replace(variant, quantization=stored))
    return model.requires_grad_(False)


def _depth_of_reference(depth: Depth) -> tuple[Depth]:
    """Return the layers of the copy, whose names begin with the part that it is."""
    return (replace(depth, stack=f"{objectives.REFERENCE}.{depth.stack}"),)


def _config(request: TraceRequest, variant: Variant) -> tuple[Any, Depth]:
    from transformers import AutoConfig  # noqa: PLC0415  not in every Python

    values = dict(request.config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise Unsupported("the config has no model_type")
    try:
        config = AutoConfig.for_model(kind, **values)
    except ValueError as error:
        raise Unsupported(f"this transformers has no model_type {kind!r}") from error
    text = config.get_text_config()
    name = next(name for name in DEPTHS if hasattr(text, name))
    full = int(getattr(text, name))
    period = _period(getattr(text, "layer_types", None), full)
    built = full if variant.full_depth else reduced(full, period)
    setattr(text, name, built)
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:built]
    config.use_cache = text.use_cache = variant.use_cache
    return config, Depth(stack="", full=full, built=built, period=period)


def _period(kinds: list[str] | None, full: int) -> int:
    """Find after how many layers their kinds repeat."""
    if not kinds:
        return 1
    return next(
        (p for p in range(1, full) if all(kinds[i] == kinds[i % p] for i in range(full))), full
    )


def _model(request: TraceRequest, variant: Variant, config: Any) -> Any:
    import transformers  # noqa: PLC0415  not in every Python

    config._attn_implementation = "eager" if variant.attention == "eager" else "sdpa"
    if variant.objective is not None and variant.objective.head == "score":
        return _scoring(config, variant.objective.labels)
    names = list(request.config.get("architectures") or [])
    for name in names:
        found = getattr(transformers, name, None) if name else None
        if found is not None:
            return found._from_config(config)
    for auto in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM"):
        mapping = getattr(transformers, auto)
        if type(config) in mapping._model_mapping:
            return mapping.from_config(config)
    raise Unsupported(f"this transformers cannot build {names or config.model_type!r}")


def _scoring(config: Any, labels: int) -> Any:
    """Return the model with an output for each label in place of the words."""
    import transformers  # noqa: PLC0415

    config.num_labels = labels
    config.pad_token_id = config.get_text_config().pad_token_id = PADDING
    auto = transformers.AutoModelForSequenceClassification
    if type(config) not in auto._model_mapping:
        raise Unsupported(f"this transformers has no {config.model_type!r} with a score")
    return auto.from_config(config)


def _resize(model: Any, variant: Variant) -> None:
    if variant.new_tokens:
        rows = model.get_input_embeddings().weight.shape[0] + variant.new_tokens
        with torch.device("meta"):
            model.resize_token_embeddings(rows, mean_resizing=False)


def _weights_dtype(variant: Variant) -> torch.dtype:
    """Return the dtype of the base weights: as stated, else fp32 under autocast."""
    if variant.weights_dtype:
        return DTYPES[variant.weights_dtype]
    narrow = half(variant.precision)
    if narrow is None:
        return torch.float32
    casts = variant.quantization != "none" or not mixed(variant.precision)
    return narrow if casts else torch.float32


def _trainable_dtype(variant: Variant) -> torch.dtype | None:
    """Return what trained weights are cast to, None for as they are."""
    return DTYPES[variant.trainable_dtype] if variant.trainable_dtype else None


def _has(model: nn.Module, name: str) -> bool:
    return any(path.rsplit(".", 1)[-1] == name for path, _ in model.named_modules())


def _quantize(model: Any, variant: Variant) -> None:
    if variant.quantization == "none":
        return
    if variant.quantization == "prequantized":
        raise Unsupported("the kernels of a checkpoint that is quantized already are not traced")
    compute = half(variant.precision) or torch.float32
    head = next((p for p, m in model.named_modules() if m is model.get_output_embeddings()), "")
    quantize(model, variant.quantization, compute, skip=(head,) if head else ())
    model.is_quantized = True  # PEFT then leaves the inputs of towers without a gradient
    for module in model.modules():
        if hasattr(module, "keeps_input"):
            module.keeps_input = variant.bitsandbytes_keeps_input
    if variant.kbit_float32:  # PEFT's prepare_model_for_kbit_training
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.to(torch.float32)


def _raise(model: nn.Module, variant: Variant) -> None:
    """Keep in fp32 what a framework raises after it has loaded the model, by parts of names."""
    for path, module in model.named_modules():
        if any(word in path for word in variant.raised):
            module.to(torch.float32)


def _checkpoint(model: Any, variant: Variant) -> None:
    if not variant.checkpointing:
        return
    how = {"use_reentrant": variant.use_reentrant, "preserve_rng_state": False}
    if variant.checkpoints_trained_layers:
        again = _where_trained(partial(checkpoint, **how))
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)
        return
    model.gradient_checkpointing_enable(how)
    if variant.use_reentrant:
        model.enable_input_require_grads()


def _where_trained(again: Any) -> Any:
    """Return a checkpoint function that skips layers without a trained parameter."""

    def run(layer: Any, *args: Any, **kwargs: Any) -> Any:
        bound = getattr(layer, "func", layer)  # newer: a function of the layer
        module = bound.__self__ if hasattr(bound, "__self__") else layer.args[0]
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return layer(*args, **kwargs)
        floats = (arg for arg in args if torch.is_tensor(arg) and arg.is_floating_point())
        for hidden in islice(floats, 1):
            hidden.requires_grad_(True)
        return again(layer, *args, **kwargs)

    return run


def _train(model: Any, variant: Variant, head: Any, media_terms: dict[str, str]) -> nn.Module:
    """Decide what is trained, and in which format."""
    frozen = _frozen(model, variant, media_terms)
    called = model
    if variant.tuning == "lora":
        if variant.lora is None:
            raise Unsupported("the plan tunes an adapter and the recipe has none")
        called = lora.adapt(model, variant.lora, lora.targets(model, variant.lora, head, frozen))
        if variant.train_embeddings or variant.new_tokens:
            model.get_input_embeddings().requires_grad_(True)
            head.requires_grad_(True)
    elif variant.tuning == "full":
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(not any(f".{part}." in f".{path}" for part in frozen))
    else:
        raise Unsupported(f"tuning {variant.tuning!r} cannot be traced")
    _cast(called, _trainable_dtype(variant))
    return called


def _cast(model: nn.Module, dtype: torch.dtype | None) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and dtype is not None and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _frozen(model: nn.Module, variant: Variant, media_terms: dict[str, str]) -> tuple[str, ...]:
    """Return the parts that stay as they are."""
    parts: list[str] = []
    if "vision_tower" in variant.frozen:
        parts += [f"{name}.{child}" for name in media_terms for child in _blocks(model, name)]
    if "projector" in variant.frozen:
        parts += [name for name in PROJECTORS if f".{name}." in _paths(model)]
    if "language_model" in variant.frozen:
        parts += ["language_model", "lm_head"]
    return tuple(parts)


def _blocks(model: nn.Module, tower: str) -> list[str]:
    """List the children of a tower that are not its projector."""
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] == tower:
            return [name for name, _ in module.named_children() if name != "merger"]
    return []


def _paths(model: nn.Module) -> str:
    return " ".join(f".{path}." for path, _ in model.named_modules())


def _forward(model: nn.Module, variant: Variant) -> Any:
    widen = mixed(variant.precision) and variant.loop != "script"

    def forward(inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = dict(model(**inputs))
        if widen:  # accelerate's convert_outputs_to_fp32
            outputs = {name: _float32(value) for name, value in outputs.items()}
        return outputs

    return forward


def _float32(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value
