"""Tiny models, tokenizers and data sets for each framework, made inside its own Python.

    PYTHON assets.py {llama,litgpt} FOLDER [--hidden N] [--layers N] [--vocabulary N] ...

The folder gets `model/` and `data/train.json`; the same seed gives the same weights and text.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--pairs", action="store_true", help="preferences in data/pairs as well")
    parser.add_argument(
        "--prompts", action="store_true", help="texts alone in data/prompts as well"
    )
    asked = parser.parse_args()
    make_assets.write_samples(
        asked.folder / "data" / "train.json",
        samples=asked.samples,
        words=asked.words,
        seed=asked.seed,
    )
    if asked.pairs:
        _write_pairs(asked.folder / "data", words=asked.words)
    if asked.prompts:
        _write_prompts(asked.folder / "data")
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


def _write_pairs(data: Path, *, words: int) -> None:
    """Write pairs of a preferred answer and another as JSON lines; of `words` words, as all are."""
    rows = json.loads((data / "train.json").read_text())
    lines = [
        json.dumps(
            {"prompt": row["instruction"], "chosen": f" {row['output']}", "rejected": f" {worse}"}
        )
        for row in rows
        for worse in [" ".join(reversed(row["output"].split()))]
    ]
    (data / "pairs").mkdir(exist_ok=True)
    (data / "pairs" / "train.jsonl").write_text("\n".join(lines))


def _write_prompts(data: Path) -> None:
    """Write each answer as a prompt of its own, as JSON lines."""
    rows = json.loads((data / "train.json").read_text())
    lines = [json.dumps({"prompt": f" {row['output']}"}) for row in rows]
    (data / "prompts").mkdir(exist_ok=True)
    (data / "prompts" / "train.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
