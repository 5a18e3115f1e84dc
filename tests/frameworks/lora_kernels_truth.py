"""Counts what axolotl's LoRA kernels keep of a layer and what they work with, on the CPU.

Run in the environment `axolotl`. Prints one JSON list of {"name", "kept_bytes", "peak_bytes"}: what
one layer keeps for its backward pass, and the most that is alive in a step over checkpointed layers
beyond its start. The functions are axolotl's own, put into a model by axolotl; only the activation,
which is a kernel of Triton, is computed by torch here, and into the tensors that the kernel uses.
"""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import axolotl.kernels.lora as kernels
import peft
import torch
import transformers
from axolotl.monkeypatch.lora_kernels import apply_lora_kernel_patches, patch_self_attn_lora
from axolotl.utils.dict import DictDefault
from profiled import most, run_cases
from tiny_models import ARCEE, LLAMA, QWEN3
from torch.profiler import ProfilerActivity, profile

ROWS, LENGTH, RANK = 2, 512, 8
#: So few words that the logits are never the most, and matrices that are small beside activations.
SHAPE = {"vocab_size": 64, "num_hidden_layers": 6, "num_key_value_heads": 8}
EVERY = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
FEW = ["q_proj", "k_proj", "v_proj", "o_proj"]
TWO = ["q_proj", "v_proj"]

#: name, config, kernels, the adapter's own settings
CASES: list[tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]] = [
    ("none", LLAMA, (), {}),
    ("all", LLAMA, EVERY, {}),
    ("mlp", LLAMA, EVERY[:1], {}),
    ("qkv", LLAMA, EVERY[1:2], {}),
    ("o", LLAMA, EVERY[2:], {}),
    ("all dropout", LLAMA, EVERY, {"lora_dropout": 0.1}),
    ("none attention", LLAMA, (), {"target_modules": FEW}),
    ("all attention", LLAMA, EVERY, {"target_modules": FEW}),
    ("none two", LLAMA, (), {"target_modules": TWO}),
    ("all two", LLAMA, EVERY, {"target_modules": TWO}),
    ("none qwen3", QWEN3, (), {}),
    ("all qwen3", QWEN3, EVERY, {}),
    ("none ungated", ARCEE, (), {}),
    ("all ungated", ARCEE, EVERY, {}),
]  # fmt: skip


def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Give silu(gate) * up in one new tensor, as the kernel does."""
    out = torch.empty_like(gate)
    for one, part, row in zip(gate, up, out, strict=True):
        for a, b, into in zip(one.split(8), part.split(8), row.split(8), strict=True):
            into.copy_(torch.nn.functional.silu(a) * b)
    return out


def backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the result and both gradients in the tensors that came in, as the kernel does."""
    for g, a, b in zip(grad.split(8), gate.split(8), up.split(8), strict=True):
        share = torch.sigmoid(a)
        active = share * a
        of_gate = g * b * share * (1 + a * (1 - share))
        result, of_up = active * b, g * active
        g.copy_(result)
        a.copy_(of_gate)
        b.copy_(of_up)
    return grad, gate, up


def adapted(
    config: dict[str, Any], layers: int, chosen: tuple[str, ...], own: dict[str, Any]
) -> torch.nn.Module:
    """Make a model in bf16 with an adapter in fp32, its chosen kernels switched on by axolotl."""
    values = config | SHAPE | {"num_hidden_layers": layers}
    settings = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    settings.use_cache = False
    found = getattr(transformers, config["architectures"][0])
    cfg = DictDefault(dict.fromkeys(chosen, True))
    with tempfile.TemporaryDirectory() as folder:
        settings.save_pretrained(folder)
        cfg["base_model"] = folder
        patch_self_attn_lora(cfg)
    base = found._from_config(settings).to(torch.bfloat16)
    lora = {"r": RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | own
    model = peft.get_peft_model(base, peft.LoraConfig(**lora))
    return apply_lora_kernel_patches(model, cfg)


def step(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 60
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def kept(*case: Any, layers: int) -> int:
    """Give what the forward pass of a whole model leaves alive."""
    config, chosen, own = case
    model = adapted(config, layers, chosen, own).train()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        loss = step(model)
    events = measured.profiler.kineto_results.events()
    found = sum(event.nbytes() for event in events if event.name() == "[memory]")
    loss.backward()
    return int(found)


def peak(*case: Any) -> int:
    """Give the most that a checkpointed step makes, in its second turn: gradients are there."""
    config, chosen, own = case
    model = adapted(config, 6, chosen, own).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    step(model).backward()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step(model).backward()
    return most(measured)


def sizes(*case: Any) -> dict[str, int]:
    one_layer = (kept(*case, layers=6) - kept(*case, layers=3)) // 3
    return {"kept_bytes": one_layer, "peak_bytes": peak(*case)}


if __name__ == "__main__":
    kernels.swiglu_forward, kernels.swiglu_backward = forward, backward
    run_cases(CASES, sizes)
