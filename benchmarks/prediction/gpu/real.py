"""Real models with random weights on a device, as the dry run builds them on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from oomguard_tracer.batches import causal
from oomguard_tracer.request import parse


def model_and_batch(
    config: dict[str, Any], case: dict[str, Any], device: str
) -> tuple[Any, dict[str, Any]]:
    """Build the model of a case and one batch of full length."""
    values = dict(config)
    settings = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    settings._attn_implementation = case["recipe"].get("attention", "sdpa")  # noqa: SLF001  as documented
    settings.use_cache = False
    precision = case["plan"]["precision"]
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(device if case["plan"]["quantization"] == "none" else "cpu"):
        model = getattr(transformers, config["architectures"][0])._from_config(settings)  # noqa: SLF001
    torch.set_default_dtype(torch.float32)
    model = _prepared(model, case, device).train()
    return model, {name: value.to(device) for name, value in _batch(settings, case).items()}


def optimizer_of(model: Any, case: dict[str, Any]) -> Any:
    """Give the optimizer that the case names."""
    trained = [p for p in model.parameters() if p.requires_grad]
    name = case["plan"].get("optimizer", "adamw_torch")
    if name == "sgd":
        return torch.optim.SGD(trained, lr=1e-5, foreach=True)
    if name.endswith("fused"):
        return torch.optim.AdamW(trained, lr=1e-5, fused=True)
    return torch.optim.AdamW(trained, lr=1e-5, foreach=case["recipe"].get("foreach", True))


def _prepared(model: Any, case: dict[str, Any], device: str) -> Any:
    if case["plan"]["quantization"] != "none":
        _pack(model, case["plan"]["quantization"])
        model = model.to(device)
    if case["plan"]["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = case["recipe"]["lora"]
    if lora is None:
        return model
    import peft  # noqa: PLC0415

    frozen = bool(case["plan"].get("frozen"))
    return peft.get_peft_model(model, peft.LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"],
        exclude_modules=r".*visual.*" if frozen else None))  # fmt: skip


def _pack(model: Any, quantization: str) -> None:
    import bitsandbytes  # noqa: PLC0415

    model.is_loaded_in_4bit = True
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and name != "lm_head":
                packed = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None,
                    compute_dtype=torch.bfloat16, quant_type="nf4",
                    compress_statistics=quantization.endswith("double"))  # fmt: skip
                packed.load_state_dict(child.state_dict(), strict=False)
                setattr(model.get_submodule(path), name, packed)


def _batch(settings: Any, case: dict[str, Any]) -> dict[str, Any]:
    document = {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [
        {"id": "x", "plan": case["plan"], "recipe": case["recipe"]}]}  # fmt: skip
    (variant,) = parse(document).variants
    return causal(settings)(variant, (variant.sequence_length,) * variant.micro_batch)
