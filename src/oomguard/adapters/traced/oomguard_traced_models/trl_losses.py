# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""TRL's losses, by its own fused output head where it is installed.

Source: trl 1.16.0, trainer/{sft,dpo,reward,kto}_trainer.py, trainer/utils.py (add_fused_lm_head),
kernels/chunked_logprob.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from oomguard_tracer.built import Unsupported
from oomguard_tracer.objectives import Models
from torch.nn import functional

Loss = Callable[[dict[str, Any]], torch.Tensor]
#: Outputs of the head: the log-probabilities, and what the metrics are made of.
DPO_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
KTO_OUTPUTS = ("log_probs", "entropy", "mean_logits")
SFT_OUTPUTS = ("log_probs", "entropy", "is_top1")
BETA = 0.1


def supervised(models: Models) -> Loss:
    """Return the cross entropy of each sample's tokens."""
    _fused_head(models, models.base, SFT_OUTPUTS)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        outputs = models.policy(**batch, fused_lm_head=True)
        return -outputs.log_probs.sum() / outputs.label_mask.sum().clamp(min=1)

    return loss


def preference(models: Models) -> Loss:
    """Return DPO's loss: of each pair, how much likelier the better answer is than before."""
    _fused_heads(models, DPO_OUTPUTS)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        outputs = models.policy(**batch, fused_lm_head=True)
        ratios = outputs.log_probs.sum(dim=1)
        if models.compare is not None:
            frozen = models.compare(**batch, fused_lm_head=True)
            ratios = ratios - frozen.log_probs.sum(dim=1)
        chosen, rejected = ratios.chunk(2)
        return -functional.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


def unpaired(models: Models) -> Loss:
    """Return KTO's loss: how much likelier each answer is than before, beside the divergence.

    That is estimated first, from the samples with each other's answers and without gradients.
    """
    _fused_heads(models, KTO_OUTPUTS)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        mismatched = _summed(models.policy, batch)
        outputs = models.policy(**batch, fused_lm_head=True)
        ratios = outputs.log_probs.sum(dim=1)
        if models.compare is not None:
            mismatched = mismatched - _summed(models.compare, batch)
            ratios = ratios - models.compare(**batch, fused_lm_head=True).log_probs.sum(dim=1)
        return (1 - torch.sigmoid(BETA * (ratios - mismatched.mean()))).mean()

    return loss


def _summed(call: Callable[..., Any], batch: dict[str, Any]) -> torch.Tensor:
    """Return the log-probability of each row, without gradients."""
    with torch.no_grad():
        return call(**batch, fused_lm_head=True).log_probs.sum(dim=1)


def reward(models: Models) -> Loss:
    """Return the loss of a reward model: of each pair, how much higher the better answer scores."""

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = models.policy(**inputs, use_cache=False)
        models.at_loss()
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        return -functional.logsigmoid(chosen - rejected).mean()

    return loss


def _fused_heads(models: Models, outputs: tuple[str, ...]) -> None:
    """Replace the output heads of policy and reference as TRL's preference trainers do."""
    _fused_head(models, models.base, outputs)
    if models.reference is not None:
        _fused_head(models, models.reference, ("log_probs",))


def _fused_head(models: Models, model: Any, outputs: tuple[str, ...]) -> None:
    """Replace the output head by TRL's own.

    Raises:
        Unsupported: if there is no TRL, or one that computes the whole logits.
    """
    try:
        utils: Any = importlib.import_module("trl.trainer.utils")
        kernel: Any = importlib.import_module("trl.kernels.chunked_logprob")
        add = utils.add_fused_lm_head
    except (ImportError, AttributeError) as error:
        raise Unsupported("the loss is TRL's own, from 1.16 on, which is not installed") from error
    utils._ChunkedLogProbFunction = _Marked(models, kernel.ChunkedLogProbFunction)
    if models.cuda:
        _as_on_cuda(utils, kernel)
    add(model, outputs=outputs)


class _Marked:
    """TRL's function over tiles of the logits, which says where it begins."""

    def __init__(self, models: Models, function: Any) -> None:
        self._models, self._function = models, function

    def apply(self, *arguments: Any) -> Any:
        """Apply it."""
        self._models.at_loss()
        return self._function.apply(*arguments)


def _as_on_cuda(utils: Any, kernel: Any) -> None:
    """Set the path of a GPU: valid positions alone, tiles folded in place, products in fp32."""
    utils._use_triton = lambda _: True
    kernel._forward_tile = kernel._backward_tile = lambda *_, **__: None
    kernel._addmm_fp32 = lambda *_: None
