"""Answer an out-of-memory error in a training step by that step in smaller parts.

When a forward or backward pass of the Trainer runs out of memory, the gradients of the optimizer
step are dropped, its random state is restored, and its batches run again, divided by their rows.
Where the same loss and gradients cannot be shown to follow, the original error is raised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref

from . import oom
from .freeing import free_memory, release
from .in_place_ranks import Exchange, Passed, RanksExchange, is_exchanging, taken_by
from .in_place_scope import BatchKind, expected_way, has_known_steps, is_rounded, why_not
from .in_place_trainer import Account, BatchPart, TrainerCall
from .split import Budget, divide
from .split_accounts import Accounts, Gradients, random_state
from .split_batch import NotRowsError
from .split_loss import (
    CLOSE_IN_HALF,
    EXACT,
    SHIFTED_LABELS,
    NotAdditiveError,
    is_uniform,
    measure,
    weigh,
)
from .split_timing import Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .install import Function, Patches
    from .reporter import Reporter
    from .split_loss import Samples

    Call = Callable[[Any], Any]


def hook_steps(trainer_class: Any, patches: Patches, torch: Any) -> None:
    """Hook the Trainer's optimizer steps: the batches that it fetches for one, and each of them."""
    reporter = patches.reporter
    bound = int(os.environ.get("OOMGUARD_TOKEN_BOUND") or 0) or None
    followed: weakref.WeakKeyDictionary[Any, Steps] = weakref.WeakKeyDictionary()

    def fetching(original: Function) -> Function:
        @functools.wraps(original)
        def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
            fetched = original(self, *args, **kwargs)
            if not reporter.disabled:
                with contextlib.suppress(Exception):
                    followed.setdefault(self, Steps(torch, reporter, bound)).begin(*fetched)
            return fetched

        return get_batch_samples

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            def call(part: Any) -> Any:
                return original(self, model, part, *args, **kwargs)

            steps = None if reporter.disabled else followed.get(self)
            return call(inputs) if steps is None else steps.run(self, model, inputs, call)

        return training_step

    patches.replace(trainer_class, "get_batch_samples", fetching)
    patches.replace(trainer_class, "training_step", stepping)


class _PartError(Exception):
    """A part of a batch failed, and not for lack of memory."""


class Steps:
    """The optimizer steps of one trainer: each has the batches that were fetched for it."""

    def __init__(self, torch: Any, reporter: Reporter, bound: int | None = None) -> None:
        self._torch, self._reporter = torch, reporter
        self._budget, self._bound = Budget(bound), bound
        self._ways: dict[bool, str] = {}
        self._batches: list[Any] = []
        self._items: Any = None
        self._done = 0
        self._running: Samples | BatchPart | None = None
        self._in_part = False
        self._undivided: str | None = None  # or why it cannot be divided
        self._begun = 0.0
        self._account = Account()
        self._restore: Callable[[], None] = _nothing
        self._gradients: Gradients | None = None
        self._scope: tuple[str | None, bool] | None = None
        self._kind: BatchKind
        self._exchange, self._passed = Exchange(), Passed()
        self._is_first, self._is_new = True, False  # a step, and one with a larger batch
        self._timing = Timing()

    def begin(self, batches: list[Any], items: Any) -> None:
        """Begin an optimizer step with the batches that were fetched for it."""
        self._batches, self._items, self._done = batches, items, 0

    def run(self, trainer: Any, model: Any, inputs: Any, call: Call) -> Any:
        """Run the next batch of the step, again and in parts if it runs out of memory."""
        if not self._applies(trainer, model, inputs):
            return call(inputs)
        job, exchange = TrainerCall(trainer, model, call), self._exchange
        if self._done == 0:
            exchange.begin()
        is_due, exchange.held = exchange.is_due(), False
        failed: Exception | None = None
        surprise: str | None = None
        loss = None
        try:
            with exchange.held_back() if self._is_new else contextlib.nullcontext():
                loss = self._run(job, inputs)
        except _PartError as error:
            surprise = str(error)
        except Exception as error:  # only an OOM is kept
            known = self._scope is not None and self._scope[1]
            if oom.find(error) is None or (self._done and not known) or exchange.has_begun():
                raise
            failed = error
        if surprise is not None:
            with exchange.held_back():
                loss = self._whole(job, inputs, surprise)
        elif failed is not None:
            self._passed.forget()
            with exchange.held_back():
                loss = self._recover(job, inputs, failed)
        if is_due and exchange.held:
            exchange.finish()
        self._finish()
        return loss

    def _applies(self, trainer: Any, model: Any, inputs: Any) -> bool:
        """Return whether an OOM of this batch can be answered; note what a step begins with."""
        try:
            if self._scope is None:
                self._scope = (why_not(trainer, model, self._torch), has_known_steps(trainer))
                self._kind = BatchKind(trainer, model)
                if self._scope[0] is not None:
                    self._reporter.no_split(self._scope[0], None)
            expected = self._batches[self._done] if self._done < len(self._batches) else None
            if self._scope[0] is not None or expected is not inputs:
                return False
            if self._done == 0:
                self._restore = _nothing  # releases what the last step held
                self._restore = self._beginning(trainer, model)
                self._account, self._begun = Account(), time.monotonic()
                self._timing.begin(self._reporter.finished_at)
                if not self._exchange.is_of(model):
                    self._exchange = RanksExchange(model, self._torch)
                self._is_new = is_exchanging(model) and not all(
                    self._passed.covers(taken_by(batch, accumulated=index > 0))
                    for index, batch in enumerate(self._batches)
                )
        except Exception as error:  # noqa: BLE001 - our fault must never break the job
            self._step_aside(f"{type(error).__name__}: {error}")
            return False
        return True

    def _beginning(self, trainer: Any, model: Any) -> Callable[[], None]:
        """Return what goes back to the beginning of the step, which has no gradients yet."""
        if self._gradients is None or not self._gradients.are_of(model):
            self._gradients = Gradients(model)
        if self._gradients.are_there():
            raise RuntimeError("there are gradients before the step begins")
        gradients, accounts, random = self._gradients, Accounts(trainer), random_state(self._torch)

        def restore() -> None:
            gradients.drop()
            accounts.restore()
            random()

        return restore

    def _run(self, job: TrainerCall, inputs: Any, *, divided: bool = False) -> Any:
        """Run a batch, divided if it is beyond the budget.

        Raises:
            NotAdditiveError: if it has to be `divided` and cannot be.
        """
        limit = self._budget.limit
        parts: list[BatchPart] = []
        self._running, self._undivided, self._in_part = None, None, False
        try:
            self._running = rows = self._kind.read(inputs)
            if limit is not None and rows.tokens > limit:
                parts = self._parts(job, rows, self._timing.limit(limit, rows.tokens))
        except Exception as error:  # noqa: BLE001 - our fault must never break the job
            own = isinstance(error, (NotRowsError, NotAdditiveError))
            self._undivided = str(error) if own else f"{type(error).__name__}: {error}"
        if parts:
            return self._run_parts(job, parts)
        if divided:
            raise NotAdditiveError(self._undivided or "no part of the batch has a loss")
        if self._undivided is not None and self._bound is not None:  # which is not kept then
            self._bound = None
            self._reporter.no_split(self._undivided, None)
        loss = job.call(inputs)
        if self._running is not None:
            self._budget.passed(self._running.tokens)
            self._timing.ran(self._running.tokens)
        if is_exchanging(job.model):
            self._passed.add(taken_by(inputs, accumulated=self._done > 0))
        return loss

    def _parts(self, job: TrainerCall, rows: Samples, limit: int) -> list[BatchPart]:
        """Return the parts of a batch."""
        lengths = rows.lengths()
        divided = divide(lengths, limit, padded=rows.padded)
        weights = weigh(rows, divided, self._way(job, rows)) if len(divided) > 1 else [1.0]
        shares = weigh(rows, divided, SHIFTED_LABELS)
        parts = [
            BatchPart(rows, lengths, part, weight, share)
            for part, weight, share in zip(divided, weights, shares)  # noqa: B905 - 3.8
            if weight
        ]
        self._account.note(rows, parts, int(job.trainer.args.per_device_train_batch_size))
        return parts

    def _run_parts(self, job: TrainerCall, parts: list[BatchPart]) -> Any:
        """Run each part, and return the loss of the whole batch."""
        total = None
        before, self._in_part = Accounts(job.trainer), True
        for part in parts:
            self._running = part
            try:
                with self._exchange.held_back(), job.scaled(part.weight):
                    loss = job.call(part.batch())
            except Exception as error:
                if oom.find(error) is None:
                    raise _PartError(f"{type(error).__name__}: {error}") from error
                raise
            self._budget.passed(part.tokens)
            total = loss if total is None else total + loss
        self._timing.ran(parts[0].batch_tokens, len(parts), sum(part.tokens for part in parts))
        before.join([part.share for part in parts], parts[0].batch_tokens)
        return total

    def _recover(self, job: TrainerCall, inputs: Any, failed: Exception) -> Any:
        """Run the step again from its beginning, in ever smaller parts.

        Raises the original error, unchanged, if that cannot be done, and the last one if it was
        of a single row.
        """
        first: Exception = failed
        while True:
            rows, tokens = self._failed()
            self._account.fail(tokens)
            if rows <= 1:
                alone = self._undivided or "a batch of one row does not fit"
                if self._in_part:  # a batch of one row may be packed
                    self._reporter.no_split("a single row does not fit", tokens)
                else:
                    self._reporter.no_split(alone, None)
                raise failed
            release(failed)
            self._budget.failed(tokens)
            self._timing.failed()
            unanswered = None
            try:
                self._go_back()
                for batch in self._batches[: self._done]:
                    self._run(job, batch)
                return self._run(job, inputs, divided=True)
            except Exception as error:  # noqa: BLE001 - whatever else happens, the first is raised
                if oom.find(error) is None:
                    unanswered = str(error)
                failed = error
            if unanswered is not None:
                self._step_aside(unanswered)
                raise first

    def _failed(self) -> tuple[int, int]:
        """Return the samples and tokens of what failed; one sample if it cannot be divided."""
        try:
            return (1, 0) if self._running is None else (self._running.count, self._running.tokens)
        except NotRowsError as error:
            self._undivided = str(error)
            return 1, 0

    def _whole(self, job: TrainerCall, inputs: Any, surprise: str) -> Any:
        """Run the step again from its beginning, undivided, as from now on all others."""
        self._step_aside(surprise)
        self._go_back()
        for batch in self._batches[: self._done]:
            job.call(batch)
        return job.call(inputs)

    def _go_back(self) -> None:
        """Drop the step's gradients, free memory, and account for the time that was lost."""
        self._restore()
        self._reporter.restarted()
        free_memory(self._torch)
        lost_s = time.monotonic() - self._begun
        before = self._account
        self._account = Account(failed=before.failed, seconds=lost_s, refused=before.refused)

    def _way(self, job: TrainerCall, rows: Samples) -> str:
        """Return how the losses of a batch's rows add up, measured once for each kind of batch."""
        uniform = is_uniform(rows)
        for kind in (False, uniform):
            if kind in self._ways:
                return self._ways[kind]
        expected = expected_way(job.trainer, job.model, self._items)
        rounded = is_rounded(job.trainer, job.model, self._torch)
        if rounded and expected is None:
            raise NotAdditiveError("the loss is not known, and half precision is too coarse for it")
        tolerance = CLOSE_IN_HALF if rounded else EXACT
        try:
            with job.measuring(self._torch):
                way = measure(
                    rows,
                    lambda part: job.loss_of(part, self._items),
                    tolerance=tolerance,
                    expected=expected,
                )
        except Exception as error:
            if oom.find(error) is None or expected is None:
                raise
            return expected
        if expected is not None:  # of others each batch has to show it
            self._ways[uniform] = way
        return way

    def _finish(self) -> None:
        """Note the end of a batch; after the last one of a step, report how it was divided."""
        self._done += 1
        if self._done < len(self._batches):
            return
        if self._account.parts:
            self._budget.finished_step()
            self._reporter.split(self._account, self._timing.told())
        if self._is_first:  # the states of the optimizer take memory only from now on
            self._passed.forget()
        self._is_first = False
        self._batches, self._restore, self._running = [], _nothing, None

    def _step_aside(self, reason: str) -> None:
        self._scope = (reason, False)
        self._reporter.no_split(reason, None)


def _nothing() -> None:
    """Do nothing."""
