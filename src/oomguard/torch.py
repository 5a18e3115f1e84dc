"""Answer an out-of-memory error in a hand-written training loop by that step in smaller parts.

    from oomguard.torch import BackwardInParts

    backward = BackwardInParts(model, lambda batch: model(**batch).loss, weights="shifted labels")
    for batch in loader:
        loss = backward([batch])
        optimizer.step()
        optimizer.zero_grad()

It needs torch and nothing else, and no supervisor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from oomguard.monitor.path.oomguard_monitor import oom
from oomguard.monitor.path.oomguard_monitor.freeing import free_memory, release
from oomguard.monitor.path.oomguard_monitor.in_place_ranks import (
    Exchange,
    Passed,
    RanksExchange,
    is_exchanging,
    taken_by,
    why_not_exchanged,
)
from oomguard.monitor.path.oomguard_monitor.split import Budget, divide
from oomguard.monitor.path.oomguard_monitor.split_accounts import random_state
from oomguard.monitor.path.oomguard_monitor.split_batch import NotRowsError, Rows
from oomguard.monitor.path.oomguard_monitor.split_loss import (
    CLOSE_IN_HALF,
    EXACT,
    NotAdditiveError,
    measure,
    weigh,
)

__all__ = ["BackwardInParts"]

#: What `weights` may be: how the loss of a batch follows from that of its rows.
WEIGHTS = ("sum", "shifted labels", "labels", "rows")


class BackwardInParts:
    """Computes the gradients of optimizer steps, of some rows at once where more do not fit.

    `loss(batch)` returns the loss that `backward` is called on. A batch is a mapping, a tuple or a
    list of tensors whose first dimension is the rows. `weights` says how the loss of a batch
    follows from that of its rows: it is their "sum", or their mean, where each "rows" counts the
    same, or each of the "labels" that is not -100, or each of them but the first of a row ("shifted
    labels", as in causal language models). It is compared with the loss of two rows before a batch
    is divided for the first time; where it does not hold, nothing is divided.

    With DistributedDataParallel each rank calls this once for each step. Neither `loss` nor the
    model may exchange anything but gradients.
    """

    def __init__(self, model: Any, loss: Callable[[Any], Any], *, weights: str) -> None:
        """Compute gradients of `model`.

        Raises:
            ValueError: for unknown weights, or a model that exchanges more than gradients.
        """
        if weights not in WEIGHTS:
            raise ValueError(f"weights={weights!r} is not one of {', '.join(map(repr, WEIGHTS))}")
        why_not = why_not_exchanged(model) if is_exchanging(model) else None
        if why_not is not None:
            raise ValueError(f"{why_not}: its steps cannot run again in parts")
        self._model, self._loss, self._weights = model, loss, weights
        self._is_checked = False
        self._budget, self._passed, self._is_first = Budget(), Passed(), True
        self._exchange = RanksExchange(model, torch) if is_exchanging(model) else Exchange()
        self._running: Rows | None = None
        self._parts = 0

    @property
    def limit_tokens(self) -> int | None:
        """Return how many tokens (rows x padded width) fit at once; None if all did so far."""
        return self._budget.limit

    def __call__(self, batches: Sequence[Any]) -> Any:
        """Run the forward and backward passes of one optimizer step; return the sum of its losses.

        `batches` are its micro batches. Where one runs out of memory, the gradients are dropped,
        the random state is restored, and all of them run again in smaller parts. An error that
        this does not answer is raised as it is; `__cause__` has the reason if it is an OOM.

        Raises:
            ValueError: if there are gradients already: they would be dropped with the failed ones.
        """
        parameters = [one for one in self._model.parameters() if one.requires_grad]
        if any(one.grad is not None for one in parameters):
            raise ValueError(
                "there are gradients before the step: call zero_grad(set_to_none=True) after each "
                "optimizer step, and pass all micro batches of a step at once"
            )
        exchange, restore = self._exchange, random_state(torch)
        is_due, exchange.held = exchange.is_due(), False
        if is_due:
            exchange.begin()
        hold = is_exchanging(self._model) and not self._have_passed(batches)
        failed: BaseException | None = None
        while True:
            try:
                total = self._run(batches, hold=hold)
                break
            except Exception as error:  # noqa: BLE001 - what is not an OOM is raised
                self._may_run_again(error, failed)
                failed = failed or error
                now = error
            release(now)
            del now
            hold = True
            self._go_back(parameters, restore)
        if is_due and exchange.held:
            exchange.finish()
        self._finish()
        return total

    def _run(self, batches: Sequence[Any], *, hold: bool) -> Any:
        """Run all batches; only the last one exchanges gradients, none if they are to `hold`."""
        total, self._parts = None, 0
        for number, batch in enumerate(batches):
            parts = self._divided(batch)
            is_last = number == len(batches) - 1
            for part, weight, rows in parts:
                self._running = rows
                held = hold or not is_last or len(parts) > 1
                with self._exchange.held_back() if held else contextlib.nullcontext():
                    loss = self._loss(part) * weight
                    loss.backward()
                if rows is not None:
                    self._budget.passed(rows.tokens)
                total = loss.detach() if total is None else total + loss.detach()
            if len(parts) == 1:
                self._passed.add(taken_by(batch, accumulated=number > 0))
        # What was held back for the parts of an earlier batch goes with the last one.
        self._exchange.held = hold or len(parts) > 1
        return total

    def _divided(self, batch: Any) -> list[tuple[Any, float, Rows | None]]:
        """Return a batch in parts that fit, each with the weight of its loss."""
        limit = self._budget.limit
        try:
            rows = Rows(_mapping(batch))
        except NotRowsError:
            if limit is not None:
                raise
            return [(batch, 1.0, None)]
        if limit is None or rows.tokens <= limit:
            return [(batch, 1.0, rows)]
        self._check(rows, batch)
        lengths = rows.lengths()
        parts = divide(lengths, limit)
        self._parts += len(parts)
        taken = [rows.take(part, max(lengths[row] for row in part)) for part in parts]
        weights = weigh(rows, parts, self._weights)
        return [
            (_like(batch, part), weight, Rows(part))
            for part, weight in zip(taken, weights, strict=True)
            if weight
        ]

    def _check(self, rows: Rows, batch: Any) -> None:
        """Compare the loss of two rows with what `weights` says, once.

        Raises:
            NotAdditiveError: if they differ by more than rounding.
        """
        if self._is_checked:
            return
        norm = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all of them
        if any(isinstance(module, norm) for module in self._model.modules()):
            raise NotAdditiveError("batch normalization depends on the whole batch")
        restore, training = random_state(torch), self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                way = measure(
                    rows,
                    lambda part: float(self._loss(_like(batch, part))),
                    tolerance=CLOSE_IN_HALF if self._is_rounded() else EXACT,
                    expected=self._weights,
                )
        except Exception as error:
            if oom.find(error) is None:
                raise
            way = self._weights  # two rows may be too many: smaller parts come next
        finally:
            self._model.train(training)
            restore()
        if way != self._weights:
            raise NotAdditiveError(f"the loss adds up as {way!r}, not as {self._weights!r}")
        self._is_checked = True

    def _is_rounded(self) -> bool:
        """Return whether the loss is computed with less than the precision of fp32."""
        autocast = torch.is_autocast_enabled() or torch._C._is_any_autocast_enabled()  # noqa: SLF001
        floats = (one.dtype for one in self._model.parameters() if one.is_floating_point())
        return bool(autocast) or any(one != torch.float32 for one in floats)

    def _may_run_again(self, error: Exception, first: BaseException | None) -> None:
        """Set a lower limit after an error, or raise the one that the loop would have had."""
        if oom.find(error) is None:
            if first is None or not isinstance(error, NotRowsError | NotAdditiveError):
                raise error
            raise first from error
        rows, self._running = self._running, None
        if self._exchange.has_begun():
            raise error from NotAdditiveError("gradients may have been exchanged already")
        if rows is None:
            raise error from NotAdditiveError("the batch is not made of rows")
        if rows.count <= 1:
            raise error from NotAdditiveError("a single row does not fit")
        self._passed.forget()
        self._budget.failed(rows.tokens)

    def _go_back(self, parameters: list[Any], restore: Callable[[], None]) -> None:
        """Drop the step's gradients, and free what it held."""
        self._running = None
        for parameter in parameters:
            parameter.grad = None
        restore()
        free_memory(torch)

    def _have_passed(self, batches: Sequence[Any]) -> bool:
        return all(
            self._passed.covers(taken_by(batch, accumulated=number > 0))
            for number, batch in enumerate(batches)
        )

    def _finish(self) -> None:
        """Note the end of a step; the optimizer's states take memory only after the first one."""
        if self._parts:
            self._budget.finished_step()
        if self._is_first:
            self._passed.forget()
        self._is_first, self._running = False, None


def _mapping(batch: Any) -> Any:
    return dict(enumerate(batch)) if isinstance(batch, tuple | list) else batch


def _like(batch: Any, part: Mapping[Any, Any]) -> Any:
    """Return a part as what the batch is."""
    return type(batch)(part.values()) if isinstance(batch, tuple | list) else part
