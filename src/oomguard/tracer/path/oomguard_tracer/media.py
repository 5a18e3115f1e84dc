# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Images and audio of multimodal models: what their processors would add to a batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from .built import Unsupported
from .request import Variant

#: Models whose vision tower takes flat patches of each image at its own size.
PATCHED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
AUDIO_FRAMES = 3000  # Whisper's 30 seconds, whatever the length of the clip
AUDIO_BINS = 128
AUDIO_FRAMES_PER_TOKEN = 4
#: So many windows stand for all those that a tower's attention goes through one by one: fused
#: attention keeps as much for one long window as for many short ones, and is traced sooner.
WINDOWS = 4


def add(config: Any, variant: Variant, batch: dict[str, Any]) -> None:
    """Adds a variant's media to a batch: features and their placeholder tokens.

    Raises:
        Unsupported: if it is not known how the model takes them, or the text has no room for them.
    """
    if variant.media.get("images"):
        _images(config, variant, batch)
    if variant.media.get("audio_seconds"):
        _audio(config, batch)


def few_windows(model: Any) -> None:
    """Make a tower with windowed attention use a few large windows."""
    for module in model.modules():
        if hasattr(module, "get_window_index"):
            module.get_window_index = _fewer(module.get_window_index)


def _fewer(find: Any) -> Any:
    def windows(*args: Any, **kwargs: Any) -> tuple[Any, list[int]]:
        order, bounds = find(*args, **kwargs)
        stride = -(-(len(bounds) - 1) // WINDOWS)
        return order, [*bounds[:-1:stride], bounds[-1]]

    return windows


def _images(config: Any, variant: Variant, batch: dict[str, Any]) -> None:
    if config.model_type not in PATCHED:
        return _fixed_images(config, variant, batch)
    vision = config.vision_config
    merge = vision.spatial_merge_size
    grids = [_grid(size, variant, vision.patch_size, merge) for size in variant.media["images"]]
    rows = batch["input_ids"].shape[0]
    tokens = [height * width // merge**2 for _, height, width in grids]
    _place(batch, tokens, config.image_token_id)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = rows * sum(height * wide for _, height, wide in grids)
    batch["pixel_values"] = torch.empty((patches, width), dtype=torch.float32)
    batch["image_grid_thw"] = torch.tensor(grids * rows, dtype=torch.int64)
    batch["mm_token_type_ids"] = (batch["input_ids"] == config.image_token_id).to(torch.int32)
    return None


def _grid(size: list[int], variant: Variant, patch: int, merge: int) -> tuple[int, int, int]:
    """Return an image's patches; sides are rounded to merged patches within the pixel limit."""
    height, width = size
    limit = variant.image_pixels or height * width
    scale = min(1.0, math.sqrt(limit / (height * width)))
    unit = patch * merge
    sides = [max(1, math.floor(side * scale / unit)) * merge for side in (height, width)]
    return 1, sides[0], sides[1]


def _fixed_images(config: Any, variant: Variant, batch: dict[str, Any]) -> None:
    """Follow LLaVA: every image at the tower's own size, one token per patch."""
    vision = getattr(config, "vision_config", None)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if not isinstance(side, int) or not isinstance(patch, int) or token is None:
        raise Unsupported(f"how {config.model_type} takes images is not known")
    count = len(variant.media["images"])
    rows = batch["input_ids"].shape[0]
    tokens = getattr(config, "mm_tokens_per_image", (side // patch) ** 2)
    _place(batch, [tokens] * count, token)
    batch["pixel_values"] = torch.empty((rows * count, 3, side, side), dtype=torch.float32)


def _audio(config: Any, batch: dict[str, Any]) -> None:
    if config.model_type != "qwen2_audio":
        raise Unsupported(f"how {config.model_type} takes audio is not known")
    token = getattr(config, "audio_token_id", getattr(config, "audio_token_index", None))
    rows = batch["input_ids"].shape[0]
    _place(batch, [AUDIO_FRAMES // AUDIO_FRAMES_PER_TOKEN], token)
    bins = getattr(config.audio_config, "num_mel_bins", AUDIO_BINS)
    batch["input_features"] = torch.empty((rows, bins, AUDIO_FRAMES), dtype=torch.float32)
    batch["feature_attention_mask"] = torch.ones((rows, AUDIO_FRAMES), dtype=torch.int64)


def _place(batch: dict[str, Any], tokens: list[int], token: int | None) -> None:
    """Replace the media by runs of `token`, with a text token between them."""
    ids = batch["input_ids"]
    if sum(tokens) + len(tokens) > ids.shape[1]:
        raise Unsupported(
            f"the media need {sum(tokens) + len(tokens)} tokens and the text has {ids.shape[1]}"
        )
    at = 1
    for count in tokens:
        ids[:, at : at + count] = token
        at += count + 1
    batch["labels"] = torch.where(ids == token, -100, batch["labels"])
