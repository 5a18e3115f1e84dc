"""Read a batch as samples, and take some of them, without padding that only others needed."""

from __future__ import annotations

import functools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .split_media import Media

IDS, MASK, LABELS, COMPLETIONS = "input_ids", "attention_mask", "labels", "completion_mask"
POSITIONS = "position_ids"
#: The label of a token without a loss; source: torch.nn.CrossEntropyLoss.
IGNORED = -100
#: Beginnings of the names of inputs that may not be rows even if their number is the same: media
#: and the places of packed samples. Source: the processors and collators of transformers 5.23.
_NOT_ROWS = (
    "pixel_", "image", "video", "audio", "input_features", "feature_", "cu_seq", "max_length_",
    "mm_", "second_per_grid", "rope_deltas", "cross_attention", "aspect_ratio", "seq_idx",
)  # fmt: skip
#: Padded widths that are multiples of this stay so: some kernels need it.
_MULTIPLE = 8
_ROWS_AND_WIDTH, _AXES_ROWS_AND_WIDTH = 2, 3


class NotRowsError(Exception):
    """A batch that cannot be divided by its samples, and why."""


class Rows:
    """The samples of a batch: how many, how wide they are padded, and how long each of them is.

    A sample is a row. Of `pairs` it is two: the first half of the rows is what was chosen, the
    second what was rejected, and the width of a sample is that of both. `media` says which pixels
    or sounds belong to a row. A batch without `input_ids` has the widths of all that is named so
    (`chosen_input_ids`, ...), or 1: then only its samples are counted.
    """

    #: Every sample of a part takes the width of its longest one.
    padded = True

    def __init__(self, batch: Any, *, media: Media | None = None, pairs: bool = False) -> None:
        """Read a batch.

        Raises:
            NotRowsError: if it has no rows.
        """
        if not hasattr(batch, "items"):
            raise NotRowsError("the batch is not a mapping")
        self._batch = dict(batch.items())
        ids: Any = self._batch.get(IDS)
        tensors = [value for value in self._batch.values() if _dimensions(value)]
        if not tensors:
            raise NotRowsError("the batch has no tensors")
        self._rows: int = int((tensors[0] if ids is None else ids).shape[0])
        self._each = 2 if pairs and ids is not None else 1
        if self._rows % self._each:
            raise NotRowsError(f"pairs with {self._rows} rows")
        self.count: int = self._rows // self._each
        self._width: int = int(ids.shape[1]) if _dimensions(ids) == _ROWS_AND_WIDTH else 1
        self.width: int = self._each * self._width if ids is not None else _named(self._batch)
        self._media = media

    @functools.cached_property
    def _owned(self) -> dict[str, list[list[int]]]:
        """Return the entries of media by row; all other inputs have one entry for each of them.

        Read only once something has run out of memory.

        Raises:
            NotRowsError: if it has inputs that do not belong to one sample each.
        """
        owned = self._media.owned(self._batch) if self._media is not None else {}
        for name, value in self._batch.items():
            if name not in owned:
                self._check(name, value)
        return owned

    @property
    def tokens(self) -> int:
        """Return samples x padded width."""
        return self.count * self.width

    def lengths(self) -> list[int]:
        """Return how many tokens each sample needs: to its last attended token, label or medium."""
        mask: Any = self._batch.get(MASK)
        if not self._may_trim() or _shape(mask) != (self._rows, self._width):
            return [self.width] * self.count
        needed: Any = mask != 0
        labels, ids = self._batch.get(LABELS), self._batch.get(IDS)
        if _shape(labels) == _shape(mask):
            needed = needed | (labels != IGNORED)
        for token in self._media.placeholders if self._media is not None else ():
            needed = needed | (ids == token)
        places = needed.long().cumsum(1).argmax(1) + 1  # the last one that counts
        unit = _MULTIPLE if self._width % _MULTIPLE == 0 else 1
        rows = [-(-max(1, int(place)) // unit) * unit for place in places.tolist()]
        return [self._each * max(rows[n :: self.count]) for n in range(self.count)]

    def labelled(self, *, shifted: bool) -> list[int]:
        """Return the number of labels with a loss in each sample; 1 where labels are not tokens.

        `shifted`: the label of a row's first token is not used. Preferences without labels have a
        mask of the tokens of their answers.
        """
        labels: Any = self._batch.get(LABELS)
        if labels is None and _dimensions(self._batch.get(COMPLETIONS)) == _ROWS_AND_WIDTH:
            counted: Any = self._batch[COMPLETIONS] != 0
        elif _dimensions(labels) != _ROWS_AND_WIDTH or labels.is_floating_point():
            return [1] * self.count
        else:
            counted = labels != IGNORED
        rows = [int(count) for count in counted[:, int(shifted) :].sum(1).tolist()]
        return [sum(rows[n :: self.count]) for n in range(self.count)]

    def take(self, rows: Sequence[int], width: int) -> dict[str, Any]:
        """Return a batch of some samples, in their order, cut to `width` tokens."""
        both = [row + half for half in range(0, self._rows, self.count) for row in rows]
        taken: dict[str, Any] = {}
        for name, value in self._batch.items():
            if name in self._owned:
                entries = [entry for row in both for entry in self._owned[name][row]]
                if entries:  # as without any: the input is missing
                    taken[name] = picked(value, entries, 0)
            else:
                taken[name] = self._taken(value, rows, both, width // self._each)
        return taken

    def _taken(self, value: Any, rows: Sequence[int], both: Sequence[int], width: int) -> Any:
        """Return what belongs to some samples: an entry for each of them or of their rows."""
        if isinstance(value, dict):
            return {name: self._taken(inner, rows, both, width) for name, inner in value.items()}
        axis = self._axis(value)
        if axis is None:
            return value
        entries = rows if _size(value, axis) == self.count else both
        taken = picked(value, entries, axis)
        if width < self._width and _shape(value)[-1:] == (self._width,):
            taken = taken[..., :width]
        return taken

    def _axis(self, value: Any) -> int | None:
        """Return the dimension with one entry for each row; None if a value is shared by all."""
        if isinstance(value, (list, tuple)):
            return 0
        shape = _shape(value)
        if not shape:
            return None
        return 1 if shape[1:] == (self._rows, self._width) and self._is_positions(value) else 0

    def _is_positions(self, value: Any) -> bool:
        """Return whether a value is positions along several axes, each of them rows x tokens."""
        return value is self._batch.get(POSITIONS) and _dimensions(value) == _AXES_ROWS_AND_WIDTH

    def _check(self, name: Any, value: Any) -> None:
        """Raise NotRowsError for an input that does not have one entry for each row."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return
        by_token = _shape(value) == (self._rows, self._width)
        known = by_token or (self._media is not None and name == "rope_deltas")
        if IDS in self._batch and str(name).startswith(_NOT_ROWS) and not known:
            raise NotRowsError(f"{name} does not belong to one row each")
        if isinstance(value, dict):
            for inner, one in value.items():
                self._check(f"{name}.{inner}", one)
            return
        if not isinstance(value, (list, tuple)) and not hasattr(value, "shape"):
            raise NotRowsError(f"{name} is a {type(value).__name__}")
        axis = self._axis(value)
        size = _size(value, axis) if axis is not None else self._rows
        if size not in {self._rows, self.count}:
            raise NotRowsError(f"{name} has {size} entries for {self._rows} rows")

    def _may_trim(self) -> bool:
        """Return whether every input with one number per token is rows x tokens."""
        own = [value for name, value in self._batch.items() if name not in self._owned]
        if any(isinstance(value, dict) for value in own):
            return False
        by_token = [_shape(value) for value in own if self._width in _shape(value)[1:]]
        whole = (self._rows, self._width)
        positions = _shape(self._batch.get(POSITIONS))
        return self._width > 1 and all(
            shape == whole or (shape == positions and shape[1:] == whole) for shape in by_token
        )


def picked(value: Any, entries: Sequence[int], axis: int) -> Any:
    """Return some entries of a list or, along a dimension, of a tensor; a view if they adjoin."""
    if not hasattr(value, "shape"):
        return type(value)([value[entry] for entry in entries])
    first, last = entries[0], entries[-1]
    adjoin = last - first + 1 == len(entries) and list(entries) == list(range(first, last + 1))
    chosen: Any = slice(first, last + 1) if adjoin else list(entries)
    return value[chosen] if axis == 0 else value[:, chosen]


def _named(batch: dict[Any, Any]) -> int:
    """Return the widths of all inputs that end in `input_ids`, 1 if there are none."""
    shapes = [_shape(value) for name, value in batch.items() if str(name).endswith(IDS)]
    return sum(shape[1] for shape in shapes if len(shape) == _ROWS_AND_WIDTH) or 1


def _size(value: Any, axis: int) -> int:
    return len(value) if isinstance(value, (list, tuple)) else int(value.shape[axis])


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _dimensions(value: Any) -> int:
    return len(_shape(value))
