"""Make what a tiny variant trains: a tiny model with random weights, and data.

    python recipes/make_tiny.py {qwen,trl,loftq,litgpt,torchtune}

Run from the root of the repository, with the Python of the framework; it lands in `tiny/KIND/`.
Nothing is downloaded. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "quickstart"))

from make_assets import WORDS, write_llama, write_samples, write_tokenizer

SHAPES = {
    # The logits, tokens x vocabulary, outweigh all else: memory follows the micro batch.
    "qwen": {"hidden": 64, "layers": 2, "vocabulary": 32768},
    "litgpt": {"hidden": 64, "layers": 2, "vocabulary": 32768},
    "torchtune": {"hidden": 64, "layers": 2, "vocabulary": 32768},
    # TRL computes the loss without the full logits: here the layers' activations do.
    "trl": {"hidden": 256, "layers": 4, "vocabulary": 1024},
    # LoftQ compares each number of a weight with 256 levels: weights are what is large.
    "loftq": {"hidden": 512, "layers": 1, "vocabulary": 1024},
}
SIZES = {"loftq": {"samples": 8, "words": 40}}


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


def write_torchtune(folder: Path, *, hidden: int, layers: int, vocabulary: int, seed: int) -> None:
    """Write a Llama by torchtune's builder as its checkpointer reads it, and its tokenizer."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415
    from torchtune.models.convert_weights import tune_to_hf  # noqa: PLC0415
    from torchtune.models.llama2 import llama2  # noqa: PLC0415

    torch.manual_seed(seed)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    model = llama2(
        vocab_size=vocabulary,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=hidden,
        max_seq_len=4096,
        intermediate_dim=2 * hidden,
    )
    weights = tune_to_hf(model.state_dict(), num_heads=4, num_kv_heads=2, dim=hidden)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_sentencepiece(folder)


def write_sentencepiece(folder: Path) -> None:
    """Write a tokenizer of at most 1024 pieces."""
    from sentencepiece import SentencePieceTrainer  # noqa: PLC0415

    with (folder / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(8 * WORDS),
            model_writer=file,
            vocab_size=1024,
            hard_vocab_limit=False,
            minloglevel=2,
        )


def write_talks(data: Path) -> None:
    """Write the samples as QwenLM/Qwen reads them: conversations."""
    talks = [
        {
            "id": str(number),
            "conversations": [
                {"from": "user", "value": row["instruction"]},
                {"from": "assistant", "value": row["output"]},
            ],
        }
        for number, row in enumerate(json.loads((data / "train.json").read_text()))
    ]
    (data / "talks.json").write_text(json.dumps(talks, indent=1))


def write_texts(data: Path) -> None:
    """Write the samples as a folder of JSON lines with `text`, which TRL takes for a data set."""
    rows = json.loads((data / "train.json").read_text())
    lines = [json.dumps({"text": f"{row['instruction']} {row['output']}"}) for row in rows]
    (data / "texts").mkdir(exist_ok=True)
    (data / "texts" / "train.jsonl").write_text("\n".join(lines))


def main() -> None:
    """Write model and data of one tiny variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SHAPES)
    kind: str = parser.parse_args().kind
    model, data = Path("tiny", kind, "model"), Path("tiny", kind, "data")
    sizes = {"samples": 64, "words": 400, **SIZES.get(kind, {})}
    write_samples(data / "train.json", seed=0, **sizes)
    if kind != "torchtune":  # whose tokenizers are of other formats
        write_tokenizer(model)
    write = {"litgpt": write_litgpt, "torchtune": write_torchtune}.get(kind, write_llama)
    write(model, seed=0, **SHAPES[kind])
    if kind == "qwen":
        write_talks(data)
    if kind == "trl":
        write_texts(data)


if __name__ == "__main__":
    main()
