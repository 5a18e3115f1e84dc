"""Tiny models, tokenizers and data sets for each framework, made inside its own Python.

    PYTHON assets.py {llama,litgpt} FOLDER [--hidden N] [--layers N] [--vocabulary N] ...

The folder gets `model/` and `data/train.json`; the same seed gives the same weights and text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
QUICKSTART = RECIPES / "quickstart"
sys.path[:0] = [str(QUICKSTART), str(RECIPES)]

import make_assets  # noqa: E402  found on the path set above, in every framework's Python
import make_tiny  # noqa: E402


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
    write_model = make_assets.write_llama if asked.kind == "llama" else make_tiny.write_litgpt
    write_model(
        model,
        hidden=asked.hidden,
        layers=asked.layers,
        vocabulary=asked.vocabulary,
        seed=asked.seed,
    )


if __name__ == "__main__":
    main()
