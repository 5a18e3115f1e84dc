"""How long optimizer steps take whole and in parts: what a restart could save follows from it.

A step that answered an OOM is left out, and so is the first one of a process: both take longer than
those that follow. Nothing here waits for the device: a step ends where its optimizer does, after
the Trainer has read its loss.
"""

from __future__ import annotations

import time

#: Divided steps after which one runs in twice the parts, which shows what a pass costs.
ALIKE = 8

_SUMS = ("steps", "batches", "passes", "tokens", "whole_tokens")


class Sums:
    """Sums over steps: their batches, the passes of these, the tokens in them, the seconds.

    `whole_tokens` are those of the batches with all their padding.
    """

    __slots__ = (*_SUMS, "seconds")

    def __init__(self) -> None:
        self.steps = self.batches = self.passes = self.tokens = self.whole_tokens = 0
        self.seconds = 0.0

    def add(self, batches: int, passes: int, tokens: int, whole_tokens: int) -> None:
        """Add a batch, or several."""
        self.batches += batches
        self.passes += passes
        self.tokens += tokens
        self.whole_tokens += whole_tokens

    def told(self) -> dict[str, float]:
        """Return them as they are reported."""
        return {**{name: getattr(self, name) for name in _SUMS}, "seconds": round(self.seconds, 4)}


class Timing:
    """The steps of one trainer, apart by whether they ran whole, divided, or in twice the parts."""

    def __init__(self) -> None:
        self.whole, self.divided, self.halved = Sums(), Sums(), Sums()
        self._step: Sums | None = None
        self._begun = 0.0
        self._is_halved = self._was_divided = False
        self._seen = 0

    def begin(self, finished_at: float) -> None:
        """Begin a step; the one before it took until `finished_at`."""
        self._close(finished_at)
        self._seen += 1
        self._step, self._was_divided = Sums(), False
        self._is_halved = self.divided.steps >= ALIKE and not self.halved.steps
        self._begun = time.monotonic()

    def limit(self, limit: int, tokens: int) -> int:
        """Return the most tokens of a part in this step, for a batch of this size."""
        return max(1, limit // 2) if self._is_halved and tokens > limit else limit

    def ran(self, tokens: int, parts: int = 0, of_parts: int = 0) -> None:
        """Note a batch of some tokens that has passed, in parts that had `of_parts` tokens."""
        if self._step is not None:
            self._was_divided = self._was_divided or parts > 0
            self._step.add(1, parts or 1, of_parts or tokens, tokens)

    def failed(self) -> None:
        """Note that this step ran out of memory."""
        self._step = None

    def _close(self, finished_at: float) -> None:
        step, self._step = self._step, None
        if step is None or self._seen <= 1 or finished_at <= self._begun or not step.batches:
            return
        group = self.whole
        if self._was_divided:
            group = self.halved if self._is_halved else self.divided
        group.steps += 1
        group.add(step.batches, step.passes, step.tokens, step.whole_tokens)
        group.seconds += finished_at - self._begun

    def told(self) -> dict[str, dict[str, float]]:
        """Return them as they are reported."""
        return {name: getattr(self, name).told() for name in ("whole", "divided", "halved")}
