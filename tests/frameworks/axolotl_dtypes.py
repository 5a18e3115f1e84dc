"""Loads models as `axolotl train` does and prints what they are stored in.

Run in the environment `axolotl` with the names of config files in the folder that they are in.
Prints one JSON list of {"name", "dtypes": {part: bytes of a number}}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from axolotl.cli.config import load_cfg
from axolotl.loaders import ModelLoader, load_tokenizer

#: What the names of a model's parameters hold.
PARTS = {
    "embeddings": "embed_tokens",
    "head": "lm_head",
    "norms": "input_layernorm",
    "matrices": "q_proj",
    "adapter": "lora_A",
}


def sizes(model: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for part, word in PARTS.items() if word in name), None)
        part = "adapter" if "lora_" in name else part
        if part is not None:
            found[part] = parameter.element_size()
    return found


def main() -> None:
    rows = []
    for name in sys.argv[1:]:
        cfg = load_cfg(name)
        model, _ = ModelLoader(cfg, load_tokenizer(cfg)).load()
        rows.append({"name": name, "dtypes": sizes(model)})
    print(f"\n{json.dumps(rows)}")


if __name__ == "__main__":
    main()
