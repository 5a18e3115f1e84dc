"""Compares traced peaks with torchtune's own recipes on the CPU: run in torchtune's environment.

Prints one JSON list of {"name", "traced_bytes", "real_bytes"}, as dryrun_truth.py does. The real
runs are the recipe classes that `tune run` starts, over the twin in recipes/torchtune.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchtune
from omegaconf import DictConfig, OmegaConf
from oomguard_tracer import answer, request
from oomguard_tracer.trace import peak
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "recipes" / "quickstart")]

import make_tiny  # noqa: E402  found on the path set above
from profiled import most, print_rows  # noqa: E402  beside this file

FULL = {"model": "torchtune.models.llama2.llama2"}
CHUNKED = {"loss": "torchtune.modules.loss.CEWithChunkedOutputLoss"}
CHECKPOINTED = {"enable_activation_checkpointing": True}
PACKED = {"model.quantize_base": True}
BF16 = {"dtype": "bf16"}
IN_BACKWARD = {"optimizer_in_bwd": True}
#: name, what is changed in the twin's config
CASES: list[tuple[str, dict[str, Any]]] = [
    ("torchtune lora", {}),
    ("torchtune lora accumulation", {"gradient_accumulation_steps": 2}),
    ("torchtune lora checkpointing", CHECKPOINTED),
    ("torchtune lora bf16, chunked loss", {**BF16, **CHUNKED}),
    ("torchtune lora, chunked loss, clipped", {**CHUNKED, "clip_grad_norm": 1.0}),
    ("torchtune qlora", PACKED),
    ("torchtune qlora checkpointing, bf16, chunked",
     {**PACKED, **CHECKPOINTED, **BF16, **CHUNKED}),
    ("torchtune full", FULL),
    ("torchtune full bf16, chunked loss", {**FULL, **BF16, **CHUNKED}),
    ("torchtune full checkpointing, optimizer in backward",
     {**FULL, **CHECKPOINTED, **IN_BACKWARD}),
    ("torchtune full bf16, optimizer in backward, chunked",
     {**FULL, **BF16, **IN_BACKWARD, **CHUNKED}),
    ("torchtune full, one sample and a large head in chunks",
     {**FULL, **BF16, **IN_BACKWARD, **CHUNKED, "batch_size": 1, "optimizer": "torch.optim.SGD"}),
]  # fmt: skip
#: Wide enough that layers, and not the logits alone, show in the peak.
SHAPE = {"hidden": 512, "layers": 4, "vocabulary": 16384}
SIZES = {"vocab_size": 16384, "num_layers": 4, "embed_dim": 512, "intermediate_dim": 1024}


def config_of(changes: dict[str, Any], folder: Path) -> DictConfig:
    """Return the twin's config for the model in `folder`, with a case's changes."""
    config = OmegaConf.load(ROOT / "recipes" / "torchtune" / "tiny.yaml")
    texts = OmegaConf.to_yaml(config).replace("tiny/torchtune", str(folder))
    config = OmegaConf.create(texts.replace("out/torchtune", str(folder / "out")))
    config.model.update(SIZES)
    changes = {"batch_size": 4, "max_steps_per_epoch": 2, "optimizer.foreach": False} | changes
    for key, value in changes.items():
        whole = f"{key}._component_" if key in ("model", "loss", "optimizer") else key
        OmegaConf.update(config, whole, value, force_add=True)
    if "lora" not in config.model._component_:
        for key in [key for key in config.model if "lora" in key]:
            del config.model[key]
        OmegaConf.update(config, "optimizer_in_bwd", config.get("optimizer_in_bwd", False))
    return config


def traced(config: DictConfig) -> int:
    """Trace the same steps."""
    model = OmegaConf.to_container(config.model)
    full = "lora" not in model["_component_"]
    plan = {
        "micro_batch": config.batch_size, "accumulation": config.gradient_accumulation_steps,
        "sequence_length": config.tokenizer.max_seq_len,
        "precision": {"fp32": "fp32", "bf16": "bf16-true"}[config.dtype],
        "tuning": "full" if full else "lora",
        "checkpointing": config.enable_activation_checkpointing,
        "quantization": "nf4-double" if model.get("quantize_base") else "none",
        "loss_kernel": "fused" if "Chunked" in config.loss._component_ else "eager",
        "optimizer": config.optimizer._component_,
    }  # fmt: skip
    recipe = {
        "loop": "sums-losses", "foreach": False, "cuda": False,
        "step_in_backward": config.get("optimizer_in_bwd", False),
        "max_grad_norm": config.clip_grad_norm or 0.0,
    }  # fmt: skip
    asked = request.parse({
        "v": 1, "model": {"family": "torchtune", "config": model},
        "variants": [{"id": "x", "plan": plan, "recipe": recipe}],
    })  # fmt: skip
    return peak(answer.traced(asked, asked.variants[0])[0]).size_bytes


def real(config: DictConfig) -> int:
    """Train by torchtune's recipe and give the most bytes that were alive."""
    full = "lora" not in config.model._component_
    file = f"{'full' if full else 'lora'}_finetune_single_device.py"
    classes = runpy.run_path(str(Path(torchtune.__file__).parents[1] / "recipes" / file))
    kind = "FullFinetuneRecipeSingleDevice" if full else "LoRAFinetuneRecipeSingleDevice"
    recipe = classes[kind](config)
    recipe.setup(config)
    recipe.save_checkpoint = lambda epoch: None
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
            for tensor in [*recipe._model.parameters(), *recipe._model.buffers()]
            for part in _parts(tensor)}  # fmt: skip
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        recipe.train()
    return sum(held.values()) + most(measured)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """List what an NF4 tensor is made of; any other is itself."""
    if not hasattr(tensor, "quantized_data"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_HOME"] = name
        make_tiny.write_samples(folder / "data" / "train.json", samples=16, words=400, seed=0)
        make_tiny.write_torchtune(folder / "model", seed=0, **SHAPE)
        print_rows(
            (case, partial(_sizes, config_of(changes, folder)))
            for case, changes in CASES
            if not wanted or case in wanted
        )


def _sizes(config: DictConfig) -> dict[str, int]:
    return {"traced_bytes": traced(config), "real_bytes": real(config)}


if __name__ == "__main__":
    main()
