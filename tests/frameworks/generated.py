"""Measures what transformers takes to generate, beside the weights: run in TRL's environment.

Reads a JSON list of {"config", "rows", "prompt", "completion", "settings"} from stdin, prints the
most bytes that were alive in each, as a list.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch
from profiled import most
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig


def generated(case: dict[str, Any]) -> int:
    """Generate as TRL's GRPO does: sampled, all of a batch at once, to the last token."""
    values = dict(case["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = torch.randint(4, 100, (case["rows"], case["prompt"]))
    mask = torch.ones_like(prompts)
    mask[0, :2] = 0  # prompts of different lengths are padded
    length = case["completion"]
    wanted = GenerationConfig(
        max_new_tokens=length, do_sample=True, disable_compile=True,
        pad_token_id=3, **case["settings"],
    )  # fmt: skip
    gc.collect()
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured,
    ):
        model.generate(prompts, attention_mask=mask, generation_config=wanted)
    return most(measured)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"\n{json.dumps([generated(case) for case in json.load(sys.stdin)])}")
