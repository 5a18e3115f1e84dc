"""Divide random batches of every kind, and hold the parts against the whole.

    python split_properties.py SEED COUNT

Needs torch only. Prints for each kind how many batches were divided; fails at the first whose parts
do not join to it, or whose loss and gradients are not those of the whole.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from oomguard_monitor.split import divide
from oomguard_monitor.split_batch import Rows
from oomguard_monitor.split_loss import LABELS, ROWS, SHIFTED_LABELS, weigh
from oomguard_monitor.split_media import Media
from oomguard_monitor.split_packed import PackedRow, is_packed

IMAGE, VIDEO, WORDS = 90, 91, 100
GRIDS = SimpleNamespace(
    model_type="qwen2_5_vl", image_token_id=IMAGE, video_token_id=VIDEO,
    vision_config=SimpleNamespace(spatial_merge_size=2),
)  # fmt: skip
AUDIO = SimpleNamespace(model_type="qwen2_audio", audio_token_id=IMAGE)
LLAVA = SimpleNamespace(model_type="llava", image_token_index=IMAGE)
TABLE = torch.linspace(-1, 1, WORDS, dtype=torch.float64)


def number(low: int, high: int) -> int:
    """Draw a number."""
    return int(torch.randint(low, high + 1, ()))


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Pad on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def text(rows: int, *placeholders: list[int]) -> dict[str, Any]:
    """Return rows of words, each behind its placeholders; some of them have no labels."""
    ids = []
    for n in range(rows):
        own = [one for group in placeholders[n : n + 1] for one in group]
        ids.append(own + torch.randint(1, 80, (number(1, 20),)).tolist())
    labels = [[-100] * min(len(row), number(0, len(row) + 2)) for row in ids]
    labels = [one + row[len(one) :] for one, row in zip(labels, ids, strict=True)]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded(labels, -100),
    }


def plain() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return rows, with a list, a dictionary and a number besides."""
    batch = text(number(1, 9))
    count = len(batch["input_ids"])
    inner = {"deep": {"scores": torch.rand(count, 3)}, "names": [str(n) for n in range(count)]}
    return {**batch, "inner": inner, "temperature": 0.5, "none": None}, {}


def pairs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return pairs with the log-probabilities of a reference."""
    count = number(1, 6)
    batch = text(2 * count)
    batch["completion_mask"] = (batch.pop("labels") != -100).long()
    return {**batch, "ref_chosen_logps": torch.rand(count)}, {"pairs": True}


def grids() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return rows with images and videos of several sizes, and positions along three axes."""
    owned = {IMAGE: [], VIDEO: []}
    placeholders = []
    for _ in range(number(1, 6)):
        row = []
        for token in (IMAGE, VIDEO):
            for _ in range(number(0, 2)):
                grid = [number(1, 2) if token == VIDEO else 1, 2 * number(1, 2), 2 * number(1, 3)]
                owned[token].append(grid)
                row += [token] * (grid[0] * grid[1] * grid[2] // 4)
        placeholders.append(row)
    batch = text(len(placeholders), *placeholders)
    shape = batch["input_ids"].shape
    batch["position_ids"] = torch.arange(shape[1]).expand(3, *shape)
    batch["rope_deltas"] = torch.zeros(shape[0], 1)
    for token, patches, grid in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        if owned[token]:
            batch[grid] = torch.tensor(owned[token])
            batch[patches] = torch.rand(int(batch[grid].prod(-1).sum()), 4)
    if owned[VIDEO]:
        batch["second_per_grid_ts"] = [float(n) for n in range(len(owned[VIDEO]))]
    return batch, {"media": Media(GRIDS)}


def audio() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return rows with sounds of several lengths."""
    frames, placeholders = [], []
    for _ in range(number(1, 6)):
        own = [number(4, 40) for _ in range(number(0, 2))]
        frames += own
        placeholders.append([IMAGE] * sum(((one - 1) // 2 + 1 - 2) // 2 + 1 for one in own))
    batch = text(len(placeholders), *placeholders)
    if frames:
        batch["feature_attention_mask"] = padded([[1] * one for one in frames], 0)
        batch["input_features"] = torch.rand(len(frames), 3, 40)
    return batch, {"media": Media(AUDIO)}


def llava() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return rows with images of one size."""
    counts = [number(0, 2) for _ in range(number(1, 6))]
    batch = text(len(counts), *[[IMAGE] * (5 * count) for count in counts])
    if sum(counts):
        batch["pixel_values"] = torch.rand(sum(counts), 3, 2, 2)
    return batch, {"media": Media(LLAVA)}


def packed() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return one row of several samples."""
    lengths = [number(1, 20) for _ in range(number(1, 8))]
    ids = torch.randint(1, 80, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = ids.masked_fill((positions == 0) | (torch.rand(ids.shape) < 0.3), -100)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    more = {"cu_seq_lens_q": starts, "max_length_q": max(lengths)}
    return {"input_ids": ids, "position_ids": positions, "labels": labels, **more}, {}


def loss_of(batch: dict[str, Any], way: str, weight: torch.Tensor) -> torch.Tensor:
    """Return a loss that needs each word, the media in the place of their tokens, and the mask."""
    ids, labels = batch["input_ids"], batch.get("labels")
    values = TABLE[ids] * weight[0] + torch.sin(weight[1] * batch_positions(batch))
    media = media_of(batch, weight)
    if media is not None:
        values = values.masked_scatter((ids == IMAGE) | (ids == VIDEO), media)
    seen = batch.get("attention_mask", torch.ones_like(ids))
    if labels is None:
        labels = ids.masked_fill(batch["completion_mask"] == 0, -100)
    shifted = way == SHIFTED_LABELS
    counted = (labels != -100)[:, int(shifted) :]
    each = (values.cumsum(1) * seen if "position_ids" not in batch else values)[:, int(shifted) :]
    if way != ROWS:
        return (each * counted).sum() / counted.sum()
    scores = (each * counted).sum(1)
    if "ref_chosen_logps" in batch:
        chosen, rejected = scores.chunk(2)
        scores = torch.nn.functional.softplus(rejected - chosen + batch["ref_chosen_logps"])
    return scores.mean()


def batch_positions(batch: dict[str, Any]) -> torch.Tensor:
    """Return the positions of each token along one axis."""
    positions = batch.get("position_ids", torch.arange(batch["input_ids"].shape[1]))
    return (positions[0] if positions.dim() == 3 else positions).double()


def media_of(batch: dict[str, Any], weight: torch.Tensor) -> torch.Tensor | None:
    """Return a number for each placeholder from what fills it, in their order."""
    if "input_features" in batch:
        kept = batch["feature_attention_mask"].sum(-1)
        sums = batch["input_features"].double().sum((1, 2))
        counts = (((kept - 1) // 2 + 1 - 2) // 2) + 1
        return (sums * weight[2]).repeat_interleave(counts)
    if "pixel_values" in batch and "image_grid_thw" not in batch:
        sums = batch["pixel_values"].double().sum((1, 2, 3))
        return (sums * weight[2]).repeat_interleave(5)
    return grid_media(batch, weight)


def grid_media(batch: dict[str, Any], weight: torch.Tensor) -> torch.Tensor | None:
    """Return a number for each merged patch, in the order of the rows' placeholders."""
    streams = {
        token: (batch[name].double().sum(1) * weight[2]).reshape(-1, 4).sum(1)
        for token, name in ((IMAGE, "pixel_values"), (VIDEO, "pixel_values_videos"))
        if name in batch
    }
    if not streams:
        return None
    used: Counter[int] = Counter()
    found = []
    for token in batch["input_ids"].flatten().tolist():
        if token in streams:
            found.append(streams[token][used[token]])
            used[token] += 1
    return torch.stack(found)


def check(batch: dict[str, Any], kinds: dict[str, Any]) -> bool:
    """Return whether a batch was divided; raise AssertionError if its parts do not join to it."""
    whole = PackedRow(batch) if is_packed(batch) else Rows(batch, **kinds)
    lengths = whole.lengths()
    parts = divide(lengths, number(1, max(1, sum(lengths))), padded=whole.padded)
    assert sorted(row for part in parts for row in part) == list(range(whole.count))
    ways = (ROWS,) if kinds.get("pairs") else (SHIFTED_LABELS, LABELS)
    if whole.padded and not kinds:
        ways = (*ways, ROWS)
    for way in ways:
        weights = weigh(whole, parts, way)
        if not any(weights):
            continue
        weight = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64, requires_grad=True)
        expected = loss_of(batch, way, weight)
        (gradient,) = torch.autograd.grad(expected, weight)
        losses = [
            factor * loss_of(whole.take(part, max(lengths[row] for row in part)), way, weight)
            for part, factor in zip(parts, weights, strict=True)
            if factor
        ]
        joined = torch.stack(losses).sum()
        assert torch.allclose(joined, expected, rtol=1e-9)
        assert torch.allclose(torch.autograd.grad(joined, weight)[0], gradient, rtol=1e-9)
    return len(parts) > 1


if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[1]))
    divided = {
        make.__name__: sum(check(*make()) for _ in range(int(sys.argv[2])))
        for make in (plain, pairs, grids, audio, llava, packed)
    }
    print(json.dumps(divided))
