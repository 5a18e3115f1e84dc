"""What the arithmetic counts for generating, against the real peak of transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_dryrun_trace import run

from oomguard.estimate.architecture import from_config
from oomguard.estimate.formats import Formats
from oomguard.estimate.generation import GenerationPass
from oomguard.job.memory_settings import Generation

FP32 = Formats(base_bytes=4, trained_bytes=4, computed_bytes=4, autocast=False)
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2000,
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
#: name -> the model, rows, tokens of a prompt and of a completion
CASES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "a long prompt": (SHAPE, 8, 256, 4),
    "a long completion": (SHAPE | {"num_key_value_heads": 8}, 16, 16, 112),
    "a wide vocabulary": (SHAPE | {"vocab_size": 60_000, "hidden_size": 64}, 16, 16, 8),
}


def test_generating_takes_what_is_counted() -> None:
    asked = [
        {"config": config, "rows": rows, "prompt": prompt, "completion": more, "settings": PLAIN}
        for config, rows, prompt, more in CASES.values()
    ]
    script = str(Path(__file__).with_name("generated.py"))
    real = json.loads(run("trl", script, stdin=json.dumps(asked)).splitlines()[-1])
    counted = []
    for config, rows, prompt, more in CASES.values():
        found = GenerationPass(
            model=from_config(config), formats=FP32, rows=rows, prompt=prompt, completion=more,
            inner=config["intermediate_size"], autocast=False,
            sampled_bytes=Generation().sampled_bytes,
        )  # fmt: skip
        counted.append(max(found.prefill, found.decoding))
    ratios = {name: a / b for name, a, b in zip(CASES, counted, real, strict=True)}
    assert ratios == pytest.approx(dict.fromkeys(CASES, 1.0), rel=0.03), ratios
