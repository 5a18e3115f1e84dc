"""Read a batch as rows, and take some of its rows, without padding that only others needed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

IDS, MASK, LABELS = "input_ids", "attention_mask", "labels"
#: The label of a token without a loss; source: torch.nn.CrossEntropyLoss.
IGNORED = -100
#: Beginnings of the names of inputs that may be no rows even if their number is the same: media
#: and the places of packed samples. Source: the processors and collators of transformers 5.23.
_NOT_ROWS = (
    "pixel_", "image", "video", "audio", "input_features", "feature_", "cu_seq", "max_length_",
    "mm_", "second_per_grid", "rope_deltas", "cross_attention", "aspect_ratio", "seq_idx",
)  # fmt: skip
#: Padded widths that are multiples of this stay so: some kernels need it.
_MULTIPLE = 8
_ROWS_AND_WIDTH = 2


class NotRowsError(Exception):
    """A batch that cannot be divided by its rows, and why."""


class Rows:
    """The rows of a batch: how many, how wide they are padded, and how long each of them is.

    A batch without `input_ids` has a width of 1: only its rows are counted.
    """

    __slots__ = ("_batch", "_divisible", "count", "width")

    def __init__(self, batch: Any) -> None:
        """Read a batch.

        Raises:
            NotRowsError: if it has inputs that do not belong to one row each.
        """
        if not hasattr(batch, "items"):
            raise NotRowsError("the batch is not a mapping")
        self._batch = dict(batch.items())
        ids: Any = self._batch.get(IDS)
        tensors = [value for value in self._batch.values() if _dimensions(value)]
        if not tensors:
            raise NotRowsError("the batch has no tensors")
        self.count: int = int((tensors[0] if ids is None else ids).shape[0])
        self.width: int = int(ids.shape[1]) if _dimensions(ids) == _ROWS_AND_WIDTH else 1
        self._divisible = [
            name for name, value in self._batch.items() if self._is_rows(name, value)
        ]

    @property
    def tokens(self) -> int:
        """Return rows x padded width."""
        return self.count * self.width

    def lengths(self) -> list[int]:
        """Return how many tokens each row needs: to its last attended token and its last label."""
        mask: Any = self._batch.get(MASK)
        if _shape(mask) != (self.count, self.width) or not self._may_trim():
            return [self.width] * self.count
        needed: Any = mask != 0
        labels = self._batch.get(LABELS)
        if _shape(labels) == _shape(mask):
            needed = needed | (labels != IGNORED)
        places = needed.long().cumsum(1).argmax(1) + 1  # the last one that counts
        unit = _MULTIPLE if self.width % _MULTIPLE == 0 else 1
        return [-(-max(1, int(place)) // unit) * unit for place in places.tolist()]

    def labelled(self, *, shifted: bool) -> list[int]:
        """Return the number of labels with a loss in each row; 1 each where labels are not tokens.

        `shifted`: the label of a row's first token is not used.
        """
        labels = self._batch.get(LABELS)
        if labels is None or _dimensions(labels) != _ROWS_AND_WIDTH or labels.is_floating_point():
            return [1] * self.count
        counted = (labels[:, 1:] if shifted else labels) != IGNORED
        return [int(count) for count in counted.sum(1).tolist()]

    def take(self, rows: Sequence[int], width: int) -> dict[str, Any]:
        """Return a batch of some rows, in their order, cut to `width` tokens."""
        return {
            name: self._taken(value, rows, width) if name in self._divisible else value
            for name, value in self._batch.items()
        }

    def _taken(self, value: Any, rows: Sequence[int], width: int) -> Any:
        if not hasattr(value, "shape"):
            return type(value)(value[row] for row in rows)
        first, last = rows[0], rows[-1]
        in_a_row = last - first + 1 == len(rows)
        value = value[first : last + 1] if in_a_row else value[list(rows)]
        if width < self.width and _shape(value)[1:] == (self.width,):
            value = value[:, :width]
        return value

    def _is_rows(self, name: Any, value: Any) -> bool:
        """Return whether an input has one entry for each row, False if it is shared by all."""
        if IDS in self._batch and str(name).startswith(_NOT_ROWS):
            raise NotRowsError(f"{name} does not belong to one row each")
        if value is None or isinstance(value, (bool, int, float, str)):
            return False
        if isinstance(value, (list, tuple)):
            size = len(value)
        elif hasattr(value, "shape"):
            if not _dimensions(value):
                return False
            size = int(value.shape[0])
        else:
            raise NotRowsError(f"{name} is a {type(value).__name__}")
        if size != self.count:
            raise NotRowsError(f"{name} has {size} entries for {self.count} rows")
        return True

    def _may_trim(self) -> bool:
        """Return whether every input with one number per token is rows x tokens."""
        shapes = [_shape(value) for value in self._batch.values()]
        by_token = [shape for shape in shapes if self.width in shape[1:]]
        return self.width > 1 and all(shape == (self.count, self.width) for shape in by_token)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _dimensions(value: Any) -> int:
    return len(_shape(value))
