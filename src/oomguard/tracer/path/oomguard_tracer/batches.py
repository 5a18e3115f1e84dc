# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Makes the arguments of a forward pass: real control tensors, fake payload."""

from __future__ import annotations

from typing import Any

import torch

from . import media
from .built import Batch
from .request import Variant


def causal(config: Any) -> Batch:
    """Return the batches of a causal language model, padded on the right to the longest sample."""

    def batch(variant: Variant, lengths: tuple[int, ...]) -> dict[str, Any]:
        longest = max(lengths)
        ids = torch.ones((len(lengths), longest), dtype=torch.int64)
        mask = torch.ones((len(lengths), longest), dtype=torch.int64)
        for row, length in enumerate(lengths):
            mask[row, length:] = 0
        made = {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}
        media.add(config, variant, made)
        return made

    return batch
