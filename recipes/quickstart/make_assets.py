"""Make a tiny Llama with random weights, its tokenizer and a data set, all under one folder.

    python recipes/quickstart/make_assets.py quickstart

Nothing is downloaded. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

TEXT = """
the cat sat on a mat while dog ran over hill and red fox saw blue bird near big tree
today rain fell down upon green field where old horse slept under warm sun
"""
WORDS = TEXT.split()


def write_samples(path: Path, *, samples: int, words: int, seed: int) -> None:
    """Write `samples` pairs of instruction and output, each output `words` words long."""
    draw = random.Random(seed)  # noqa: S311  sample text, not a secret
    rows = [
        {
            "instruction": "Describe " + " ".join(draw.choices(WORDS, k=8)),
            "input": "",
            "output": " ".join(draw.choices(WORDS, k=words)),
        }
        for _ in range(samples)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer whose merges make one token of each word of `WORDS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def write_llama(folder: Path, *, hidden: int, layers: int, vocabulary: int, seed: int) -> None:
    """Write a Llama of this shape with random weights, in fp32 safetensors.

    `vocabulary` may exceed what the tokenizer uses: the logits, tokens x vocabulary floats,
    are what makes the memory of a step grow with the batch.
    """
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    """Write everything that `train.yaml` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    write_samples(folder / "train.json", samples=64, words=400, seed=0)
    write_tokenizer(folder / "model")
    write_llama(folder / "model", hidden=64, layers=2, vocabulary=32768, seed=0)


if __name__ == "__main__":
    main()
