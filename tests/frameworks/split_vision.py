"""A tiny Qwen2.5-VL on the Trainer, on rows with no image, one, or several of other sizes.

Its pixels are random and no processor is needed: the case `vision` of split_runs.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import QWEN_VL

SIDE = 14 * 14 * 3 * 2
SHAPES = ((), ((1, 4, 4),), ((1, 8, 4), (1, 4, 8)), ((1, 16, 16),))


def model() -> Any:
    """Return the same model each time; its logits are most of what a step takes."""
    from transformers import (  # noqa: PLC0415  only for this case
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    text = QWEN_VL["text_config"] | {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = QWEN_VL["vision_config"] | {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
        "out_hidden_size": 64, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(**{**QWEN_VL, "text_config": text, "vision_config": vision})
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


def with_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of words with images before them; their tokens have no labels."""
    image = QWEN_VL["image_token_id"]
    start, end = QWEN_VL["vision_start_token_id"], QWEN_VL["vision_end_token_id"]
    found = []
    for number, row in enumerate(rows):
        grids = SHAPES[number % len(SHAPES)]
        ids = [
            token
            for grid in grids
            for token in (start, *[image] * (grid[0] * grid[1] * grid[2] // 4), end)
        ]
        words = [word % 7000 for word in row["input_ids"]]
        generator = torch.Generator().manual_seed(number)
        patches = sum(grid[0] * grid[1] * grid[2] for grid in grids)
        found.append(
            {
                "input_ids": ids + words,
                "labels": [-100] * len(ids) + words,
                "attention_mask": [1] * (len(ids) + len(words)),
                "grids": grids,
                "pixels": torch.rand(patches, SIDE, generator=generator),
            }
        )
    return found


def collated(rows: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
    """Add the images of the rows to a batch of their words."""
    grids = [grid for row in rows for grid in row["grids"]]
    batch["mm_token_type_ids"] = (batch["input_ids"] == QWEN_VL["image_token_id"]).int()
    if grids:
        batch["image_grid_thw"] = torch.tensor(grids)
        batch["pixel_values"] = torch.cat([row["pixels"] for row in rows])
    return batch
