"""Measures what ms-swift's losses over whole logits take, by its own `rlhf`: in its environment.

Prints one JSON list of {"name", "forward", "most"} as whole_logits.py does. The first step of a run
computes the loss alone, the second one all of it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from profiled import most
from swift.pipelines import rlhf_main
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "recipes" / "quickstart"))

import make_assets  # noqa: E402  found on the path set above

VOCABULARY, TOKENS, PAIRS = 16_000, 256, 2
NARROW = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
SETTINGS = {
    "model": "model", "model_type": "llama", "template": "dummy", "tuner_type": "full",
    "torch_dtype": "float32", "bf16": True, "fp16": False, "use_hf": True,
    "dataset": "pairs.jsonl", "split_dataset_ratio": 0, "max_length": TOKENS,
    "truncation_strategy": "right", "per_device_train_batch_size": PAIRS,
    "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "max_steps": 2,
    "output_dir": "out", "add_version": False, "save_strategy": "no", "report_to": "none",
    "use_cpu": True, "use_logits_to_keep": False, "dataloader_num_workers": 0,
}  # fmt: skip
KINDS = ("dpo", "orpo", "cpo")


class Measured:
    """Stands for the Trainer's step: it measures the loss of the first, and all of the second."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._step = Trainer.training_step

    def __call__(self, trainer: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        """Measure one step."""
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            if self.found:
                loss = self._step(trainer, model, inputs, *rest)
            else:
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model.train(), inputs).detach()
        self.found.append(most(measured) / (2 * PAIRS * TOKENS * VOCABULARY))
        return loss


def _sizes(kind: str) -> dict[str, Any]:
    measured = Measured()

    def step(*arguments: Any) -> Any:
        return measured(*arguments)

    Trainer.training_step = step
    words = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
    rlhf_main(["--rlhf_type", kind, *words])
    Trainer.training_step = measured._step
    return {"name": kind, "forward": measured.found[0], "most": measured.found[1]}


def main() -> None:
    """Measure each method."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_assets.write_tokenizer(Path("model"))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **NARROW))
        model.save_pretrained("model")
        pair = {"response": " mat" * 2 * TOKENS, "rejected_response": " red" * 2 * TOKENS}
        Path("pairs.jsonl").write_text(f"{json.dumps({'query': 'cat', **pair})}\n" * 8)
        print(f"\n{json.dumps([_sizes(kind) for kind in KINDS])}")
        os.chdir("/")


if __name__ == "__main__":
    main()
