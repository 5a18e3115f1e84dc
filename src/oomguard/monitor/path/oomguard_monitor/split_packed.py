"""Read one row that holds several samples behind each other, and take some of them.

Their positions begin at 0 again, and no padding or mask is between them: the collators of
transformers and TRL for padding-free training, packed or not.
"""

from __future__ import annotations

import functools

from .split_batch import IDS, IGNORED, LABELS, MASK, POSITIONS, NotRowsError, picked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: Where samples begin, and how long the longest is. Source: transformers 5.23, `flash_attn_kwargs`
#: of DataCollatorWithFlattening.
_STARTS = ("cu_seq_lens_q", "cu_seq_lens_k")
_LONGEST = ("max_length_q", "max_length_k")


class PackedRow:
    """The samples of a row: `count` of them, `width` tokens in all."""

    #: The tokens of a part are those of its samples together.
    padded = False

    def __init__(self, batch: Any) -> None:
        self._batch = dict(batch.items())
        self.width: int = int(self._batch[IDS].shape[1])

    @functools.cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        """Return where each sample begins and ends; read only once something has run out.

        Raises:
            NotRowsError: if the samples cannot be taken apart.
        """
        positions = self._batch[POSITIONS][0].tolist()
        starts = [n for n, position in enumerate(positions) if position == 0]
        bounds = list(zip(starts, [*starts[1:], self.width]))  # noqa: B905 - 3.8
        if positions != [n for start, end in bounds for n in range(end - start)]:
            raise NotRowsError("position_ids does not count the tokens of each sample")
        labels = self._batch.get(LABELS)
        if labels is not None and any(int(labels[0, n]) != IGNORED for n in starts[1:]):
            raise NotRowsError("the first token of a packed sample has a label")
        for name, value in self._batch.items():
            shape = tuple(getattr(value, "shape", ()))
            several = isinstance(value, (list, tuple, dict)) or (shape and shape != (1, self.width))
            if name not in _STARTS and several:
                raise NotRowsError(f"{name} does not have one entry for each packed token")
        return bounds

    @property
    def count(self) -> int:
        """Return the number of samples."""
        return len(self._bounds)

    @property
    def tokens(self) -> int:
        """Return the tokens of all samples."""
        return self.width

    def lengths(self) -> list[int]:
        """Return the tokens of each sample."""
        return [end - start for start, end in self._bounds]

    def labelled(self, *, shifted: bool) -> list[int]:
        """Return the number of labels with a loss in each sample; its first token's may not be."""
        labels: Any = self._batch.get(LABELS)
        if labels is None:
            return [1] * self.count
        counted = (labels[0] != IGNORED).tolist()
        return [sum(counted[start + shifted : end]) for start, end in self._bounds]

    def take(self, rows: Sequence[int], _width: int) -> dict[str, Any]:
        """Return a batch of some samples, behind each other in one row."""
        places = [place for row in rows for place in range(*self._bounds[row])]
        lengths = [self.lengths()[row] for row in rows]
        starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
        taken: dict[str, Any] = {}
        for name, value in self._batch.items():
            if name in _STARTS and value is not None:
                taken[name] = value.new_tensor(starts)
            elif name in _LONGEST and value is not None:
                taken[name] = max(lengths)
            else:
                by_token = bool(getattr(value, "shape", ()))
                taken[name] = picked(value, places, 1) if by_token else value
        return taken


def is_packed(batch: Any) -> bool:
    """Return whether a batch is one row, with positions that tell its samples apart and no mask."""
    ids, positions = (batch.get(IDS), batch.get(POSITIONS)) if hasattr(batch, "get") else (0, 0)
    shape = tuple(getattr(ids, "shape", ()))
    if len(shape) != 2 or shape[0] != 1 or shape != tuple(getattr(positions, "shape", ())):  # noqa: PLR2004 - rows and width
        return False
    return batch.get(MASK) is None
