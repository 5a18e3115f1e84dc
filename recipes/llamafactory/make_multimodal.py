"""Tiny multimodal models with random weights, their real processors, and data: made offline.

    python recipes/llamafactory/make_multimodal.py {vision,audio} FOLDER

The folder gets `model/` and `data/`, in the classes of transformers that the big ones use. Runs in
LLaMA-Factory's Python, which must have torchvision (pictures) or torchaudio (sounds), and pillow.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import wave
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from make_assets import WORDS, write_tokenizer

VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
AUDIO = ("<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")
CHAT = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HIDDEN, VOCABULARY, SAMPLES, SIDE = 64, 2048, 16, 448
RATE, SECONDS = 16000, 1


def tokenizer_with(folder: Path, marks: tuple[str, ...]):
    """Write a tokenizer that knows a model's marks, and give it."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*CHAT, *marks], "eos_token": "<|im_end|>"}
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(tokenizer) -> dict[str, object]:
    """Return the shape of both language models."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<s>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_vision(folder: Path) -> None:
    """Write a Qwen2.5-VL and pictures to train it on."""
    from transformers import (  # noqa: PLC0415
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    model = folder / "model"
    tokenizer = tokenizer_with(model, VISION)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    processor.save_pretrained(model)
    text = text_config(tokenizer) | {
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rope_theta": 10000.0,
    }
    vision = {
        "depth": 4,
        "hidden_size": 8 * HIDDEN,
        "intermediate_size": 16 * HIDDEN,
        "num_heads": 8,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    }
    marks = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            map(tokenizer.convert_tokens_to_ids, (*VISION[:2], *VISION[3:])),
            strict=True,
        )
    )
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(model)
    write_data(folder, "image", _picture)


def write_audio(folder: Path) -> None:
    """Write a Qwen2-Audio and sounds to train it on."""
    from transformers import (  # noqa: PLC0415
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    model = folder / "model"
    tokenizer = tokenizer_with(model, AUDIO)
    extractor = WhisperFeatureExtractor(feature_size=128)
    Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(model)
    audio = {
        "d_model": HIDDEN,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * HIDDEN,
        "num_mel_bins": 128,
    }
    text = text_config(tokenizer) | {"model_type": "qwen2"}
    config = Qwen2AudioConfig(
        text_config=text,
        audio_config=audio,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(model)
    write_data(folder, "audio", _sound)


def write_data(folder: Path, kind: str, make: object) -> None:
    """Write conversations about pictures or sounds, and LLaMA-Factory's note of them."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)  # noqa: S311  sample text, not a secret
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"<{kind}> Describe " + " ".join(draw.choices(WORDS))},
                {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=40))},
            ],
            f"{kind}s": [make(data, number, draw)],
        }
        for number in range(SAMPLES)
    ]
    (data / "train.json").write_text(json.dumps(rows))
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    info = {
        "file_name": "train.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", f"{kind}s": f"{kind}s"},
        "tags": tags,
    }
    (data / "dataset_info.json").write_text(json.dumps({"tiny": info}))


def _picture(data: Path, number: int, draw: random.Random) -> str:
    from PIL import Image  # noqa: PLC0415

    name = f"{number}.png"
    Image.frombytes("RGB", (SIDE, SIDE), draw.randbytes(SIDE * SIDE * 3)).save(data / name)
    return str(data / name)


def _sound(data: Path, number: int, draw: random.Random) -> str:
    path = data / f"{number}.wav"
    samples = [draw.randint(-9999, 9999) for _ in range(RATE * SECONDS)]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, len(samples), "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return str(path)


if __name__ == "__main__":
    import torch

    torch.manual_seed(0)
    write = {"vision": write_vision, "audio": write_audio}[sys.argv[1]]
    write(Path(sys.argv[2]))
