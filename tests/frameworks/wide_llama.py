"""A Llama most of whose weights are linear layers, in a checkpoint of one weight a file.

    PYTHON wide_llama.py FOLDER

A checkpoint is mapped while it is loaded, and RLIMIT_DATA counts such a mapping. With one file a
weight it is given back but for the weights that stay as they are, so that a quantized base takes
less from then on, as it does on a device. The folder gets `model/` and `data/train.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "quickstart"))

import make_assets

#: 126 million numbers in linear layers: in 8 bits they take 60 MiB more than in 4.
LAYERS, HIDDEN, INTERMEDIATE = 10, 128, 32768
#: The logits of 64 tokens outweigh what a base in 4 bits takes besides its checkpoint.
VOCABULARY = 262144


def main(folder: Path) -> None:
    """Write a model, its tokenizer and a data set."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    make_assets.write_samples(folder / "data" / "train.json", samples=4, words=100, seed=0)
    make_assets.write_tokenizer(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model", max_shard_size="1MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
