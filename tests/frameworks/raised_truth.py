"""Compares traced peaks of full tuning beside embeddings, head and norms in fp32 with real steps.

Run in the environment `hf`. Prints one JSON list of {"name", "traced_bytes", "real_bytes"}, as
dryrun_truth.py does; a third figure, "held_bytes", is the weights alone. The matrices are in bf16
and autocast computes, as in axolotl without flash attention.
"""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import torch
import transformers
from dryrun_truth import RECIPE, Samples, _arguments, _model, traced, variant
from profiled import most, run_cases
from tiny_models import LLAMA, QWEN
from torch.profiler import ProfilerActivity, profile

NAMES = ["norm", "embed_tokens", "lm_head"]
PLAN = {"precision": "bf16-mixed"}
HALF = RECIPE | {"weights_dtype": "bf16", "trainable_dtype": "bf16", "raised": NAMES}

#: name, config, plan
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("raised", LLAMA, {}),
    ("raised checkpointing", LLAMA, {"checkpointing": True}),
    ("raised accumulation", LLAMA, {"accumulation": 2}),
    ("raised sgd", LLAMA, {"optimizer": "sgd"}),
    ("raised tied", QWEN | {"tie_word_embeddings": True}, {}),
]


def sizes(config: dict[str, Any], plan: dict[str, Any]) -> dict[str, int]:
    asked = variant(PLAN | plan, HALF)
    model = _model(config, asked, {}).to(torch.bfloat16)
    for name, module in model.named_modules():
        if any(word in name for word in NAMES):
            module.to(torch.float32)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]}  # fmt: skip
    samples = Samples(asked.sequence_length, 2 * asked.micro_batch * asked.accumulation)
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(asked, folder, {"bf16": True})
        trainer = transformers.Trainer(model, arguments, train_dataset=samples)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            trainer.train()
    weights = sum(held.values())
    real = weights + most(measured)
    return {"traced_bytes": traced(config, asked), "real_bytes": real, "held_bytes": weights}


if __name__ == "__main__":
    run_cases(CASES, sizes)
