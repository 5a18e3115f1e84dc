# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Losses of one vector for each row: of a classifier's scores, of an embedding.

Source: transformers 5.6.0, modeling_layers.py (GenericForSequenceClassification); ms-swift 4.6.0,
model/patcher.py (patch_output_normalizer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oomguard_tracer.objectives import Models
from torch.nn import functional

Loss = Callable[[dict[str, Any]], torch.Tensor]


def classification(models: Models) -> Loss:
    """Return a loss of the scores of each row's last token: they go by labels and not by words."""

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        scores = models.policy(**_inputs(batch), use_cache=False).logits
        models.at_loss()
        return scores.float().square().mean()

    return loss


def embedding(models: Models) -> Loss:
    """Return a loss of the hidden state of each row's last token, by which rows are compared."""
    head: Any = models.base.get_output_embeddings()
    head.forward = lambda hidden: hidden

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        hidden = models.policy(**_inputs(batch), use_cache=False).logits
        models.at_loss()
        ends = batch["attention_mask"].sum(-1) - 1
        rows = functional.normalize(hidden[torch.arange(hidden.shape[0]), ends], p=2, dim=1)
        first, second = rows.chunk(2)
        return (1 - torch.cosine_similarity(first, second)).mean()

    return loss


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}
