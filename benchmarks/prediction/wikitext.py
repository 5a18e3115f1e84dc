"""Count the tokens of WikiText-2's lines, for spread.py; needs transformers, and files to name.

    python wikitext.py encoder.json vocab.bpe valid.txt test.txt > wikitext_lengths.json

GPT-2's vocabulary and merges are in several packages; the text lies in pytorch/examples, under
word_language_model. Its rare words are cut to `<unk>`, which makes some lines a little shorter.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIMIT = 128


def main() -> None:
    vocabulary, merges, *texts = sys.argv[1:]
    from transformers import GPT2TokenizerFast  # noqa: PLC0415  not in every Python

    tokenizer = GPT2TokenizerFast(vocab_file=vocabulary, merges_file=merges)
    lines = [line for text in texts for line in Path(text).read_text().splitlines()]
    found = counted(tokenizer, lines)
    text = "WikiText-2, " + " and ".join(Path(name).name for name in texts)
    print(json.dumps({"source": text, "limit": LIMIT, "lines_by_tokens": found}))


def counted(tokenizer: Any, lines: Iterable[str]) -> dict[str, int]:
    """Give how many lines have how many tokens, cut at the limit; blank lines have none."""
    texts = [f"{line}\n" if line.strip() else "" for line in lines]
    tokens = tokenizer(texts, truncation=True, max_length=LIMIT)["input_ids"]
    return {str(length): count for length, count in sorted(Counter(map(len, tokens)).items())}


if __name__ == "__main__":
    main()
