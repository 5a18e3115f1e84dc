"""What a loss of the framework's own takes: tiles, copies of logits, the reference's pass.

All figures are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate.formats import Formats
from oomguard.job.memory_settings import Head, Objective, Tiles

_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveLoss:
    """The loss over `tokens` of all rows, on hidden states of this width.

    `trains_head` says that the output head has a gradient.
    """

    objective: Objective
    tokens: int
    hidden: int
    vocabulary: int
    formats: Formats
    trains_head: bool

    @property
    def forward(self) -> int | None:
        """What stands when the loss is there; None if it is as in the model's own."""
        if self.objective.head is Head.SCORE:
            return self.tokens * self.objective.labels * (self.formats.computed_bytes + _FP32)
        if self.objective.head is Head.NONE:  # a vector of each row
            return 0
        tiles = self.objective.tiles
        if tiles is not None:
            return self._selected + self._working(tiles)
        copies = self.objective.logit_bytes
        return None if copies is None else int(self._logits * copies[0])

    @property
    def backward(self) -> int | None:
        """The most that stands while it goes backward; None if it is as in the model's own."""
        if self.objective.head is Head.SCORE:
            return self.forward
        if self.objective.head is Head.NONE:
            return self.tokens * self.hidden * self.formats.hidden_bytes
        tiles = self.objective.tiles
        if tiles is None:
            copies = self.objective.logit_bytes
            return None if copies is None else int(self._logits * copies[1])
        gradient = self.tokens * self.hidden * (_FP32 + self.formats.hidden_bytes % _FP32)
        head = self.vocabulary * self.hidden * self._head_bytes if self.trains_head else 0
        return self._selected + self._working(tiles) + gradient + head

    @property
    def reference(self) -> int:
        """What stands of the loss at the end of the reference's forward pass."""
        copies = self.objective.reference_logit_bytes
        tiles = self.objective.tiles
        if tiles is None:
            kept = self.forward or 0
            return int(kept + self._logits * copies)
        return 2 * self._selected + self._working(tiles)

    @property
    def _logits(self) -> int:
        return self.tokens * self.vocabulary

    @property
    def _head_bytes(self) -> int:
        """The gradient is summed in fp32, and cast where the weight is narrower."""
        trained = self.formats.trained_bytes
        return _FP32 + (trained if trained < _FP32 else 0)

    @property
    def _selected(self) -> int:
        """The hidden states of the positions that count."""
        return self.tokens * self.hidden * self.formats.hidden_bytes

    def _working(self, tiles: Tiles) -> int:
        """One tile, with the hidden states and rows of the head that it is the product of."""
        size = self.formats.computed_bytes
        tokens, words = min(tiles.tokens, self.tokens), min(tiles.words, self.vocabulary)
        cast = (tokens + words) * self.hidden * size if self.formats.hidden_bytes > size else 0
        return tokens * words * size + cast
