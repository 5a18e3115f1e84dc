"""Compares traced peaks of LoRA's other scales and starts with real steps on the CPU.

Run in the environment `peft`. Prints one JSON list of {"name", "traced_bytes", "real_bytes"}, as
dryrun_truth.py does. What an adapter's start takes before the first step is not compared.
"""

from __future__ import annotations

from typing import Any

from dryrun_truth import ALL, real, traced, variant
from peft import LoftQConfig
from profiled import run_cases
from tiny_models import LLAMA

LORA = {"tuning": "lora"}
CHECKPOINTED = LORA | {"checkpointing": True}
LOFTQ = {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=8)}

#: name, plan, recipe, the adapter's own settings
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("rslora", LORA, {}, {"use_rslora": True}),
    ("rslora checkpointing", CHECKPOINTED, {}, {"use_rslora": True}),
    ("pissa", LORA, {}, {"init_lora_weights": "pissa"}),
    ("pissa in few iterations", CHECKPOINTED, {}, {"init_lora_weights": "pissa_niter_4"}),
    ("olora", LORA, {}, {"init_lora_weights": "olora"}),
    ("loftq", LORA, {}, LOFTQ),
    ("loftq checkpointing", CHECKPOINTED, {}, LOFTQ),
    ("dora and rslora", LORA, {"lora": ALL | {"dora": True}}, {"use_rslora": True}),
]  # fmt: skip


def _sizes(plan: dict[str, Any], recipe: dict[str, Any], own: dict[str, Any]) -> dict[str, int]:
    asked = variant(plan, {"lora": ALL} | recipe)
    measured = real(LLAMA, asked, own)  # first: a trace hides bitsandbytes, which LoftQ looks for
    return {"traced_bytes": traced(LLAMA, asked), "real_bytes": measured}


if __name__ == "__main__":
    run_cases(CASES, _sizes)
