"""Answer an out-of-memory error in a prediction step by that batch in smaller parts.

The parts keep the width of their batch, so that each row has the outputs that it would have had;
these are joined in their order, and the loss is weighted as in training.
"""

from __future__ import annotations

import functools
import time
import weakref

from . import oom
from .freeing import free_memory, release
from .in_place_scope import BatchKind, expected_evaluation, is_rounded, why_not
from .in_place_trainer import Account
from .split_accounts import Accounts
from .split_loss import CLOSE_IN_HALF, EXACT, SHIFTED_LABELS, NotAdditiveError, measure, weigh
from .split_outputs import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .install import Function, Patches
    from .reporter import Reporter
    from .split_loss import Samples

    Predict = Callable[[Any], Any]


def hook_evaluation(trainer_class: Any, patches: Patches, torch: Any) -> None:
    """Answer the out-of-memory errors in the prediction steps of an evaluation.

    Trainers have prediction steps of their own, so that of each is replaced while it evaluates.
    """
    reporter = patches.reporter
    followed: weakref.WeakKeyDictionary[Any, Predictions] = weakref.WeakKeyDictionary()

    def evaluating(original: Function) -> Function:
        @functools.wraps(original)
        def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
            if reporter.disabled or "prediction_step" in vars(self):
                return original(self, *args, **kwargs)
            steps = followed.setdefault(self, Predictions(torch, reporter))
            self.prediction_step = _stepping(self, self.prediction_step, steps)
            try:
                return original(self, *args, **kwargs)
            finally:
                vars(self).pop("prediction_step", None)

        return evaluation_loop

    patches.replace(trainer_class, "evaluation_loop", evaluating)


def _stepping(trainer: Any, original: Function, steps: Predictions) -> Function:
    @functools.wraps(original)
    def prediction_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        def predict(batch: Any) -> Any:
            return original(model, batch, *args, **kwargs)

        return steps.run(trainer, inputs, predict)

    return prediction_step


class Predictions:
    """The prediction steps of one trainer, and how many tokens of them fit at once."""

    def __init__(self, torch: Any, reporter: Reporter) -> None:
        self._torch, self._reporter = torch, reporter
        self._limit: int | None = None
        self._kind: BatchKind | None = None
        self._running = (1, 0)  # samples and tokens

    def run(self, trainer: Any, inputs: Any, predict: Predict) -> Any:
        """Run a prediction step, again and in parts if it runs out of memory.

        Raises the original error, unchanged, if that cannot be done.
        """
        kept = dict(inputs.items()) if hasattr(inputs, "items") else inputs
        before, account, begun = Accounts(trainer), Account(), time.monotonic()
        first: Exception | None = None
        while True:
            try:
                if self._limit is None:
                    return predict(inputs)
                found = self._divided(trainer, kept, predict, before, account)
            except Exception as error:  # noqa: BLE001 - whatever happens, the first is raised
                failed = error
            else:
                self._reporter.split_evaluation(account)
                return found
            if first is None and oom.find(failed) is None:
                raise failed
            first = first or failed
            before.restore()
            if not self._smaller(trainer, kept, failed):
                raise first
            account.fail(self._running[1])
            release(failed)
            free_memory(self._torch)
            account = Account(
                failed=account.failed, seconds=time.monotonic() - begun, refused=account.refused
            )

    def _smaller(self, trainer: Any, kept: Any, failed: Exception) -> bool:
        """Lower the limit; return whether a smaller part is left to be tried."""
        try:
            reason = self._why_not(trainer, kept, failed)
        except Exception as error:  # noqa: BLE001 - our fault must never break the job
            reason = str(error)
        if reason is not None:
            self._reporter.no_split(reason, None)
            return False
        self._limit = max(1, self._running[1] // 2)
        return True

    def _why_not(self, trainer: Any, kept: Any, failed: Exception) -> str | None:
        """Return why an error is not answered; note what ran when it was raised."""
        if oom.find(failed) is None:
            return f"an evaluation in parts: {failed}"
        reason = why_not(trainer, trainer.model, self._torch)
        if reason is not None:
            return reason
        if int(trainer.accelerator.num_processes) > 1:
            return "an evaluation on several ranks gathers from all of them"
        if getattr(trainer.args, "predict_with_generate", False):
            return "an evaluation that generates in parts may generate other text"
        if self._kind is None:
            self._kind = BatchKind(trainer, trainer.model)
            rows = self._kind.read(kept)
            self._running = rows.count, rows.tokens
        return "a single row of an evaluation does not fit" if self._running[0] <= 1 else None

    def _divided(
        self, trainer: Any, kept: Any, predict: Predict, before: Accounts, account: Account
    ) -> Any:
        """Return loss, outputs and labels of a batch, joined if it is beyond the limit."""
        assert self._kind is not None  # noqa: S101 - a limit has been set
        rows = self._kind.read(kept)
        self._running = rows.count, rows.tokens
        if rows.tokens <= (self._limit or 0):
            return predict(kept)
        lengths = [rows.width] * rows.count if rows.padded else rows.lengths()
        parts = in_order(lengths, self._limit or 0)
        losses, outputs, start = [], None, 0
        total = rows.count if rows.padded else rows.tokens
        for part in parts:
            tokens = sum(lengths[row] for row in part)
            self._running = len(part), tokens
            found = predict(rows.take(part, rows.width))
            losses.append(found[0])
            count = len(part) if rows.padded else tokens
            outputs = put(
                outputs, found[1:], start=start, count=count, total=total, axis=int(not rows.padded)
            )
            start += count
            del found
        before.join(weigh(rows, parts, SHIFTED_LABELS), rows.tokens)
        account.parts, account.rows = len(parts), max(len(part) for part in parts)
        account.width, account.tokens = rows.width, rows.tokens
        way = functools.partial(self._way, trainer, kept, rows, predict)
        return (_joined(losses, rows, parts, way), *(outputs or ()))

    def _way(self, trainer: Any, kept: Any, rows: Samples, predict: Predict) -> str:
        """Return how the losses of a batch's rows add up."""
        rounded = is_rounded(trainer, trainer.model, self._torch)
        expected = expected_evaluation(trainer, trainer.model, kept, rows)
        if rounded and expected is None:
            raise NotAdditiveError("the loss is not known, and half precision is too coarse for it")
        before = Accounts(trainer)
        try:
            return measure(
                rows,
                lambda part: float(predict(part)[0]),
                tolerance=CLOSE_IN_HALF if rounded else EXACT,
                expected=expected,
            )
        finally:
            before.restore()


def _joined(
    losses: list[Any], rows: Samples, parts: list[list[int]], way: Callable[[], str]
) -> Any:
    """Return the loss of a batch, None if an evaluation has none."""
    if losses[0] is None:
        return None
    weights = weigh(rows, parts, way())
    counted = [loss * weight for loss, weight in zip(losses, weights) if weight]  # noqa: B905 - 3.8
    return sum(counted[1:], counted[0]) if counted else losses[0]


def in_order(lengths: list[int], limit: int) -> list[list[int]]:
    """Return the rows of each part, all in their order, of at most `limit` tokens."""
    parts: list[list[int]] = []
    held = 0
    for row, length in enumerate(lengths):
        if parts and held + length <= limit:
            parts[-1].append(row)
            held += length
        else:
            parts.append([row])
            held = length
    return parts
