"""Train one case with random weights for a few steps, and print what the card's memory showed.

    python real.py DEVICE CASE    # a JSON object; starts once a line comes on stdin

The model is the one that the dry run builds on fake tensors.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import peft
import torch
import transformers
from cases import SHAPES
from nvml import of_this_process
from oomguard_tracer.batches import causal
from oomguard_tracer.request import parse

STEPS = 3


def main() -> None:
    """Import everything, wait, train."""
    device, case = sys.argv[1], json.loads(sys.argv[2])
    sys.stdin.readline()
    print(json.dumps(train(case, device)))


def train(case: dict[str, Any], device: str) -> dict[str, Any]:
    """Train for `STEPS` steps and return what the allocator and NVML saw."""
    if "cap_bytes" in case:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(case["cap_bytes"] / total_bytes)
    try:
        model, batch = model_and_batch(SHAPES[case["shape"]], case, device)
        optimizer = optimizer_of(model, case)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        last = _steps(model, batch, optimizer, case, device)
    except torch.cuda.OutOfMemoryError as error:
        return {"oom": True, "message": str(error).splitlines()[0]}
    seconds = time.perf_counter() - began
    return {"oom": False, "loss": last, "seconds": seconds, **_peaks(device)}


def _steps(
    model: Any, batch: dict[str, Any], optimizer: Any, case: dict[str, Any], device: str
) -> float:
    trained = [p for p in model.parameters() if p.requires_grad]
    mixed = case["plan"]["precision"].endswith("-mixed")
    for _ in range(STEPS):
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            outputs = model(**batch)
        loss = outputs.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)  # waits for the device


def _peaks(device: str) -> dict[str, int | None]:
    if device != "cuda":
        return {"allocated_bytes": None, "reserved_bytes": None, "context_bytes": None}
    held = of_this_process()
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "context_bytes": None if held is None else held - torch.cuda.memory_reserved(),
    }


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
    with torch.device(device):
        model = getattr(transformers, config["architectures"][0])._from_config(settings)  # noqa: SLF001
    torch.set_default_dtype(torch.float32)
    model = _prepared(model, case, device).train()
    return model, {name: value.to(device) for name, value in _batch(settings, case).items()}


def optimizer_of(model: Any, case: dict[str, Any]) -> Any:
    """Return the optimizer that the case names."""
    trained = [p for p in model.parameters() if p.requires_grad]
    name = case["plan"].get("optimizer", "adamw_torch")
    if name == "sgd":
        return torch.optim.SGD(trained, lr=1e-5, foreach=True)
    if name.endswith("fused"):
        return torch.optim.AdamW(trained, lr=1e-5, fused=True)
    return torch.optim.AdamW(trained, lr=1e-5, foreach=case["recipe"].get("foreach", True))


def _prepared(model: Any, case: dict[str, Any], device: str) -> Any:
    if case["plan"]["quantization"] != "none":
        _pack(model, case["plan"]["quantization"], device)
    if case["plan"]["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = case["recipe"]["lora"]
    if lora is None:
        return model
    frozen = bool(case["plan"].get("frozen"))
    return peft.get_peft_model(model, peft.LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"],
        exclude_modules=r".*visual.*" if frozen else None))  # fmt: skip


def _pack(model: Any, quantization: str, device: str) -> None:
    """Quantize each linear layer but the head in its place, one after the other."""
    import bitsandbytes  # noqa: PLC0415  only where a case is quantized

    model.is_loaded_in_4bit = True
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and name != "lm_head":
                packed = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None,
                    compute_dtype=torch.bfloat16, quant_type="nf4", device="meta",
                    compress_statistics=quantization.endswith("double"))  # fmt: skip
                packed.weight = bitsandbytes.nn.Params4bit(
                    child.weight.detach(), requires_grad=False, quant_type="nf4",
                    compress_statistics=quantization.endswith("double"), module=packed,
                ).to(device)  # fmt: skip
                packed.bias = child.bias
                setattr(model.get_submodule(path), name, packed)


def _batch(settings: Any, case: dict[str, Any]) -> dict[str, Any]:
    document = {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [
        {"id": "x", "plan": case["plan"], "recipe": case["recipe"]}]}  # fmt: skip
    (variant,) = parse(document).variants
    return causal(settings)(variant, (variant.sequence_length,) * variant.micro_batch)


if __name__ == "__main__":
    main()
