"""What a training step computes in, by accelerate alone and with DeepSpeed on one rank.

Prints one JSON object: for each way whether the forward pass is autocast, and the formats of
weights, hidden states and logits, as the model returns them and as the Trainer gets them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import torch
import transformers
from dryrun_truth import Samples
from sharded_cases import CONFIG, Case

WAYS = {
    "accelerate": Case(name="plain", sharding="none", ranks=1),
    "deepspeed": Case(name="zero2", sharding="zero2", ranks=1),
}


def watched(case: Case, folder: str) -> dict[str, Any]:
    """Train for two steps and return what was seen in the last."""
    seen: dict[str, Any] = {}
    config = transformers.LlamaConfig(**CONFIG)
    config.use_cache = False
    model = transformers.LlamaForCausalLM(config)
    settings = transformers.TrainingArguments(
        output_dir=folder, use_cpu=True, bf16=True, max_steps=2, save_strategy="no", report_to=[],
        per_device_train_batch_size=1, deepspeed=case.deepspeed, disable_tqdm=True,
    )  # fmt: skip

    def inside(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen["autocast"] = torch.is_autocast_enabled("cpu")
        seen["weights"] = str(module.weight.dtype)
        seen["hidden"] = str(inputs[0].dtype)
        seen["logits"] = str(output.dtype)

    model.lm_head.register_forward_hook(inside)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            seen["returned"] = str(outputs["logits"].dtype)
            return loss

    Trainer(model=model, args=settings, train_dataset=Samples(case.length, 8)).train()
    return seen


def main() -> None:
    """Watch the way that is named."""
    case = WAYS[sys.argv[1]]
    if case.deepspeed:
        import deepspeed  # noqa: PLC0415

        deepspeed.comm.torch.build_shm_op = lambda: None  # it would be compiled first
        words = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= words | {"MASTER_PORT": "29581", "ACCELERATE_USE_DEEPSPEED": "true"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print("\n" + json.dumps(watched(case, folder)))


if __name__ == "__main__":
    main()
