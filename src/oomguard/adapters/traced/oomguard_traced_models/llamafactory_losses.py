# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""LLaMA-Factory's losses: of whole logits in fp32, which stay until the loss is there.

Source: llamafactory 0.9.5, train/{dpo,kto,rm}/trainer.py, train/trainer_utils.py
(get_batch_logps); trl 0.24, models/modeling_value_head.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oomguard_tracer.objectives import Models
from torch import nn
from torch.nn import functional

Loss = Callable[[dict[str, Any]], torch.Tensor]
BETA = 0.1
VALUE_DROPOUT = 0.1  # ValueHead's own, whatever the model's


def preference(models: Models) -> Loss:
    """Return the loss of pairs; the policy's logits outlive the reference's, for the metrics.

    All of `pref_loss` follow from one log-probability for each row.
    """
    _mark_heads(models)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        logits, ratios = _rows(models.policy, batch)
        if models.compare is not None:
            ratios = ratios - _rows(models.compare, batch)[1]
        chosen, rejected = ratios.chunk(2)
        del logits
        return -functional.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


def unpaired(models: Models) -> Loss:
    """Return KTO's loss: how much likelier each answer is than before, beside the divergence.

    Copies of the policy's logits outlive the reference's, for the metrics.
    """
    _mark_heads(models)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        logits, ratios, mismatched = _with_mismatched(models.policy, batch)
        if models.compare is not None:
            _, frozen, other = _with_mismatched(models.compare, batch)
            ratios, mismatched = ratios - frozen, mismatched - other
        del logits
        return (1 - torch.sigmoid(BETA * (ratios - mismatched.mean()))).mean()

    return loss


def reward(models: Models) -> Loss:
    """Return the loss of a reward model: of each pair, how much higher the better answer scores.

    The head for values is in fp32 beside that for words, whose cross entropy is computed too.
    """
    _mark_heads(models)
    width = models.base.config.get_text_config().hidden_size
    models.own.dropout = nn.Dropout(VALUE_DROPOUT)
    models.own.summary = nn.Linear(width, 1, device="meta", dtype=torch.float32)

    def forward(**inputs: Any) -> tuple[torch.Tensor, ...]:
        outputs = models.policy(**inputs, output_hidden_states=True, use_cache=False)
        last = models.own.dropout(outputs.hidden_states[-1])
        values = models.own.summary(last.to(torch.float32)).squeeze(-1)
        return outputs.logits.float(), outputs.loss, values

    call = models.autocast(forward)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        # The second of these, with its graph, is there until the function returns.
        _, _, values = call(**batch)
        ends = batch["attention_mask"].sum(-1, keepdim=True) - 1
        chosen, rejected = values.gather(-1, ends).squeeze(-1).chunk(2)
        return -functional.logsigmoid(chosen - rejected).mean()

    return loss


def _mark_heads(models: Models) -> None:
    """Mark the output heads, whose logits the loss is made of, as its beginning."""
    for model in (models.base, models.reference):
        if model is not None:
            head: Any = model.get_output_embeddings()
            head.register_forward_pre_hook(lambda _, __: models.at_loss())


def _rows(call: Callable[..., Any], batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, and of each row the sum of its tokens' log-probabilities."""
    inputs = {name: value.clone() for name, value in batch.items()}
    labels = inputs.pop("labels")
    logits = call(**inputs, use_cache=False).logits.to(torch.float32)
    return logits, _log_probs(logits, labels)


def _with_mismatched(
    call: Callable[..., Any], batch: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a copy of the logits, and each row's log-probability with its and another's answer."""
    logits, own = _rows(call, batch)
    with torch.no_grad():
        _, other = _rows(call, batch)
    # Desired and undesired samples are selected by masks; which are which does not matter.
    return logits[torch.arange(len(own), device=own.device)], own, other


def _log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    targets = labels[:, 1:].clone().unsqueeze(2)
    # The kernel of log_softmax copies what is not contiguous, which fake tensors do not show.
    tokens = logits[:, :-1].contiguous().log_softmax(-1).gather(2, targets).squeeze(2)
    return (tokens * torch.ones_like(labels[:, 1:], dtype=torch.bool)).sum(-1)
