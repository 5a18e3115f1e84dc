# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Training loops, as far as they decide what is alive when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from typing import Any

import torch
from torch import nn

from . import optimizers
from .built import Built, autocast
from .places import trained_terms
from .recorder import Recorder
from .request import Variant


def run(built: Built, variant: Variant, tracer: Recorder) -> optimizers.Optimizer:
    """Run optimizer steps as the job's loop does; give the optimizer, with its states."""
    trained = [
        parameter
        for name, parameter in built.model.named_parameters()
        if parameter.requires_grad and not name.startswith(built.late)
    ]
    in_backward = variant.step_in_backward
    optimizer: optimizers.Optimizer = optimizers.NOTHING
    if not in_backward:
        optimizer = optimizers.make(variant, trained, built.model)
    naming = Naming(built.model, optimizer, tracer)
    if in_backward:
        _step_in_backward(variant, trained, built.model, tracer)
    if variant.eval_only:
        _evaluate(built, variant)
    else:
        LOOPS[variant.loop](built, variant, optimizer, naming)
    return optimizer


class Naming:
    """Labels gradients and optimizer states in the trace as they appear."""

    def __init__(self, model: nn.Module, optimizer: optimizers.Optimizer, tracer: Recorder) -> None:
        self._special = trained_terms(model)
        self._model = model
        self._optimizer = optimizer
        self._tracer = tracer

    def gradients(self) -> None:
        """Label the gradients that exist now."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                self._label(parameter, parameter.grad, "gradients")

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Attribute what the optimizer allocates to the layers of its parameters."""
        self._tracer.stepping = True
        yield
        for parameter, state in self._optimizer.states():
            self._label(parameter, state, "optimizer")
        self._tracer.stepping = False

    def _label(self, parameter: nn.Parameter, tensor: torch.Tensor, term: str) -> None:
        self._tracer.label(tensor, self._special.get(id(parameter), term))


def _trainer(
    built: Built, variant: Variant, optimizer: optimizers.Optimizer, naming: Naming
) -> None:
    """Follow transformers' Trainer: the loss is detached, nothing of a forward outlives it."""
    batches = _batches(variant)
    for step in range(variant.steps):
        for _ in range(_micro_batches(variant, step)):
            _training_step(built, variant, next(batches))
            naming.gradients()
        with naming.stepping():
            _clip(optimizer.parameters, variant)
            optimizer.step()
        with naming.stepping():
            optimizer.zero_grad()


def _training_step(built: Built, variant: Variant, lengths: tuple[int, ...]) -> None:
    inputs = built.batch(variant, lengths)
    with nullcontext() if variant.objective else autocast(variant):  # which casts its models' calls
        loss = _compute_loss(built, inputs)
    del inputs
    if variant.accumulation > 1:
        loss = loss / variant.accumulation
    loss.backward()


def _compute_loss(built: Built, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the loss; all other outputs are freed."""
    outputs = built.forward(inputs)
    return outputs["loss"]


def _plain(built: Built, variant: Variant, optimizer: optimizers.Optimizer, naming: Naming) -> None:
    """Follow a script's own loop: inputs, outputs and loss live until the next iteration's."""
    batches = _batches(variant)
    for step in range(variant.steps):
        for _ in range(_micro_batches(variant, step)):
            inputs = built.batch(variant, next(batches))
            with autocast(variant):
                outputs = built.forward(inputs)
            loss = outputs["loss"]
            loss.backward()
            naming.gradients()
        with naming.stepping():
            _clip(optimizer.parameters, variant)
            optimizer.step()
        with naming.stepping():
            optimizer.zero_grad()


def _keeping_logits(
    built: Built, variant: Variant, optimizer: optimizers.Optimizer, naming: Naming
) -> None:
    """Keep the logits of an iteration until the next one's exist."""
    batches = _batches(variant)
    for step in range(variant.steps):
        for _ in range(_micro_batches(variant, step)):
            batch = built.batch(variant, next(batches))
            with autocast(variant):
                logits = built.forward(batch)
                loss = batch["criterion"](logits, batch)
            (loss / variant.accumulation).backward()
            naming.gradients()
        with naming.stepping():
            optimizer.step()
        with naming.stepping():
            optimizer.zero_grad()


def _summing_losses(
    built: Built, variant: Variant, optimizer: optimizers.Optimizer, naming: Naming
) -> None:
    """Drop the logits before the backward pass, and keep the graph of the summed losses."""
    batches = _batches(variant)
    for step in range(variant.steps):
        running: Any = 0
        for _ in range(_micro_batches(variant, step)):
            batch = built.batch(variant, next(batches))
            loss = batch["criterion"](built.forward(batch), batch["labels"]) * 1.0
            running += loss
            loss.backward()
            naming.gradients()
        with naming.stepping():
            for parameter in optimizer.parameters:
                if parameter.grad is not None:
                    parameter.grad *= 1.0
            _clip(optimizer.parameters, variant)
            optimizer.step()
        with naming.stepping():
            optimizer.zero_grad()


def _evaluate(built: Built, variant: Variant) -> None:
    """Follow an evaluation: no gradients; the outputs of a batch live until the next one's."""
    built.model.eval()
    batches = _batches(variant)
    outputs: Any = None
    with torch.no_grad():
        for _ in range(variant.steps):
            inputs = built.batch(variant, next(batches))
            with autocast(variant):
                outputs = built.forward(inputs)
    del outputs


def _batches(variant: Variant) -> Iterator[tuple[int, ...]]:
    full = ((variant.sequence_length,) * variant.micro_batch,)
    return cycle([batch * variant.rows for batch in variant.lengths or full])


def _step_in_backward(
    variant: Variant, trained: list[nn.Parameter], model: nn.Module, tracer: Recorder
) -> None:
    """Step an optimizer per parameter as soon as its gradient exists, and drop the gradient."""

    def hook(optimizer: optimizers.Optimizer) -> Callable[[torch.Tensor], None]:
        naming = Naming(model, optimizer, tracer)

        def step(_: torch.Tensor) -> None:
            with naming.stepping():
                optimizer.step()
            optimizer.zero_grad()

        return step

    for parameter in trained:
        own = optimizers.make(variant, [parameter], model)
        parameter.register_post_accumulate_grad_hook(hook(own))


def _micro_batches(variant: Variant, step: int) -> int:
    """Return one for the first step, whose states come at its end; two show all that more would."""
    return min(variant.accumulation, 2) if step else 1


def _clip(parameters: list[nn.Parameter], variant: Variant) -> None:
    if variant.max_grad_norm and not variant.step_in_backward:
        nn.utils.clip_grad_norm_(parameters, variant.max_grad_norm, foreach=variant.foreach)


LOOPS = {
    "trainer": _trainer,
    "script": _plain,
    "keeps-logits": _keeping_logits,
    "sums-losses": _summing_losses,
}
