"""Measures what losses over whole logits take, by the trainers' own: run in TRL's environment.

Prints one JSON list of {"name", "forward", "most"}: bytes for each logit, the most of the forward
pass and the most of the whole step. The model is so narrow that nothing else shows.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from profiled import most
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl.experimental import cpo, orpo

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "recipes" / "quickstart"))

import make_assets  # noqa: E402  found on the path set above

VOCABULARY, TOKENS, PAIRS = 16_000, 256, 2
NARROW = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
#: name -> trainer, its config, settings
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "orpo": (orpo.ORPOTrainer, orpo.ORPOConfig, {}),
    "cpo": (cpo.CPOTrainer, cpo.CPOConfig, {}),
    "simpo": (cpo.CPOTrainer, cpo.CPOConfig, {"loss_type": "simpo"}),
    "simpo without words": (cpo.CPOTrainer, cpo.CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0}),
}


def _trainer(name: str, folder: Path) -> Any:
    """Make a trainer of a case as accelerate's bf16 prepares it."""
    trainer, config, own = CASES[name]
    make_assets.write_tokenizer(folder / "model")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **NARROW))
    model.save_pretrained(folder / "model")
    answer = {"chosen": " mat" * 2 * TOKENS, "rejected": " red" * 2 * TOKENS}
    return trainer(
        model=model,
        args=config(
            output_dir=str(folder / "out"), use_cpu=True, bf16=True, max_length=TOKENS,
            per_device_train_batch_size=PAIRS, gradient_checkpointing=False, report_to=[],
            disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, **own,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": " cat", **answer}] * 2 * PAIRS),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )  # fmt: skip


def _measured(step: Callable[[], object]) -> float:
    """Return the most bytes that were alive in a step, for each logit."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    return most(found) / (2 * PAIRS * TOKENS * VOCABULARY)


def _sizes(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(name, Path(folder))
        model = trainer.accelerator.prepare_model(trainer.model).train()
        batch = next(iter(trainer.get_train_dataloader()))
        forward = _measured(lambda: trainer.compute_loss(model, batch))
        whole = _measured(lambda: trainer.compute_loss(model, batch).backward())
    return {"forward": forward, "most": whole}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"\n{json.dumps([{'name': name, **_sizes(name)} for name in CASES])}")
