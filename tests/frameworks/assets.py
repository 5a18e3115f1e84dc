"""Tiny models, tokenizers and data sets for each framework, made inside its own Python.

    PYTHON assets.py {llama,litgpt} FOLDER [--hidden N] [--layers N] [--vocabulary N] ...

The folder gets `model/` and `data/train.json`; the same seed gives the same weights and text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

import make_assets  # noqa: E402  found on the path set above, in every framework's Python


def write_litgpt(folder: Path, *, hidden: int, layers: int, vocabulary: int, seed: int) -> None:
    """Write a LitGPT checkpoint folder: a Llama of this shape with random weights, in fp32."""
    import torch  # noqa: PLC0415
    from litgpt.config import Config  # noqa: PLC0415
    from litgpt.model import GPT  # noqa: PLC0415
    from litgpt.utils import save_config  # noqa: PLC0415

    torch.manual_seed(seed)
    config = Config(
        name="tiny-llama",
        block_size=4096,
        n_layer=layers,
        n_embd=hidden,
        n_head=4,
        n_query_groups=2,
        intermediate_size=2 * hidden,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(GPT(config).state_dict(), folder / "lit_model.pth")
    save_config(config, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2})
    )


def main() -> None:
    """Write a model, its tokenizer and a data set as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("llama", "litgpt"))
    parser.add_argument("folder", type=Path)
    for name, default in (("hidden", 64), ("layers", 2), ("vocabulary", 32768), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("samples", 64), ("words", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    make_assets.write_samples(
        asked.folder / "data" / "train.json",
        samples=asked.samples,
        words=asked.words,
        seed=asked.seed,
    )
    model = asked.folder / "model"
    make_assets.write_tokenizer(model)
    write_model = make_assets.write_llama if asked.kind == "llama" else write_litgpt
    write_model(
        model,
        hidden=asked.hidden,
        layers=asked.layers,
        vocabulary=asked.vocabulary,
        seed=asked.seed,
    )


if __name__ == "__main__":
    main()
