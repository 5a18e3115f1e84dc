"""A trainer that runs parts of its batches, the parts, and an account of them."""

from __future__ import annotations

import contextlib
import functools

from .split import tokens_of
from .split_accounts import Accounts, random_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .split_loss import Samples

    Call = Callable[[Any], Any]


class BatchPart:
    """Some rows of a batch, cut to the width that they need.

    `weight` is the factor for its loss, `share` its part of the batch's labels, `tokens` what it
    takes at once.
    """

    __slots__ = ("_of", "rows", "share", "tokens", "weight", "width")

    def __init__(
        self, of: Samples, lengths: list[int], rows: list[int], weight: float, share: float
    ) -> None:
        self._of, self.rows, self.width = of, rows, max(lengths[row] for row in rows)
        self.tokens = tokens_of(lengths, rows, padded=of.padded)
        self.weight, self.share = weight, share

    @property
    def count(self) -> int:
        """Return the number of its samples."""
        return len(self.rows)

    @property
    def batch_tokens(self) -> int:
        """Return what the batch of which it is a part takes, with its padding."""
        return self._of.tokens

    def batch(self) -> dict[str, Any]:
        """Return it as a batch."""
        return self._of.take(self.rows, self.width)


class Account:
    """How the batches of one optimizer step were divided, and what it cost.

    `rows` x `width` is the part of the widest row, `tokens` what its batch took before. A row
    that holds several samples of a batch counts as many of its rows as its largest part has.
    `refused` are the fewest tokens that ran out of memory, 0 if none did.
    """

    __slots__ = ("failed", "parts", "refused", "rows", "seconds", "tokens", "width")

    def __init__(self, *, failed: int = 0, seconds: float = 0.0, refused: int = 0) -> None:
        self.failed, self.seconds, self.refused = failed, seconds, refused
        self.parts = self.rows = self.width = self.tokens = 0

    def fail(self, tokens: int) -> None:
        """Note that this many tokens ran out of memory."""
        self.failed += 1
        self.refused = min(self.refused or tokens, tokens)

    def note(self, rows: Samples, parts: list[BatchPart], micro_batch: int) -> None:
        """Note a batch that is divided."""
        self.parts += len(parts)
        widest = max(parts, key=lambda part: part.width)
        held, width = len(widest.rows), widest.width
        if not rows.padded:
            width = -(-rows.tokens // micro_batch)
            held = max(1, max(part.tokens for part in parts) // width)
        if width > self.width:
            self.rows, self.width, self.tokens = held, width, rows.tokens


class TrainerCall:
    """A trainer with its model and the call that runs one batch."""

    def __init__(self, trainer: Any, model: Any, call: Call) -> None:
        self.trainer, self.model, self.call = trainer, model, call

    @contextlib.contextmanager
    def scaled(self, weight: float) -> Iterator[None]:
        """Multiply the trainer's loss."""
        if weight == 1:
            yield
            return
        trainer = self.trainer
        original, own = trainer.compute_loss, vars(trainer).get("compute_loss")

        @functools.wraps(original)
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            if isinstance(found, tuple):
                return (found[0] * weight, *found[1:])
            return found * weight

        trainer.compute_loss = compute_loss
        try:
            yield
        finally:
            if own is None:
                del trainer.compute_loss
            else:
                trainer.compute_loss = own

    @contextlib.contextmanager
    def measuring(self, torch: Any) -> Iterator[None]:
        """Compute losses without gradients, dropout, or a trace in what the trainer counts."""
        accounts, random, training = (
            Accounts(self.trainer),
            random_state(torch),
            self.model.training,
        )
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)
            accounts.restore()
            random()

    def loss_of(self, batch: Any, items: Any) -> float:
        """Return the trainer's loss of a batch."""
        prepared = self.trainer._prepare_inputs(batch)  # noqa: SLF001 - as its training step does
        with self.trainer.compute_loss_context_manager():
            return float(self.trainer.compute_loss(self.model, prepared, num_items_in_batch=items))
