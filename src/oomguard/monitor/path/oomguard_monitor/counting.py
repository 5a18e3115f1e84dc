"""Count what each optimizer step of this process is made of, without waiting for the device."""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Label tokens and sequences are counted in this many steps: it reads the batch.
READ_STEPS = 4
#: Loaders of accelerate fetch one batch ahead of the one that they yield.
_AHEAD = 1
_IGNORED = -100
_ITERABLE = 1  # torch.utils.data.dataloader._DatasetKind.Iterable
_ROWS = 2
_FIRST = ("input_ids", "tokens", "inputs_embeds", "pixel_values", "labels")
_POSITIONS = ("position_ids", "input_pos")
_KEY = "_oomguard_loader"
#: Of torch and torchdata, and accelerate: they draw one index for each sample.
_SAMPLERS = ("BatchSampler", "BatchSamplerShard", "SkipBatchSampler")

#: Where a count of samples comes from. What the sampler drew counts samples whatever the collator
#: makes of them (pairs, packed rows); the rows of a tensor do not.
TRAINER, LOADER, FORWARD, ROWS = "trainer", "loader", "forward", "rows"


class Batch:
    """A batch that was fetched: `samples` were drawn, `rows` is the first size of its tensors."""

    __slots__ = ("label_sum", "label_tokens", "rows", "samples", "sequences", "short")

    def __init__(self, samples: int | None, rows: int | None, *, short: bool) -> None:
        self.samples, self.rows, self.short = samples, rows, short
        self.label_tokens: int | None = None
        self.label_sum: int | None = None
        self.sequences: int | None = None

    def read(self, batch: Any) -> None:
        """Count label tokens and packed sequences; only in tensors of the host."""
        labels = _tensor(batch, "labels")
        if labels is not None and not labels.is_floating_point():
            counted = labels.ne(_IGNORED)
            self.label_tokens = int(counted.sum())
            self.label_sum = int((labels * counted).sum())
        for name in _POSITIONS:
            positions = _tensor(batch, name)
            if positions is not None and positions.dim() == _ROWS:
                self.sequences = int(positions.eq(0).sum())


class Loader:
    """What one iterator of a DataLoader has drawn and fetched, in its order."""

    __slots__ = ("drawn", "ready", "size")

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.drawn: deque[int | None] = deque()
        self.ready: deque[Batch] = deque()


class Counter:
    """Counts samples and micro batches since the last optimizer step.

    A micro batch is a call of the Trainer's `training_step`, else a backward pass. Its samples are
    those that the sampler drew for the batch. `unclear` says why nothing can be counted any more:
    a number that may be wrong is worse than none.
    """

    def __init__(self) -> None:
        self.unclear: str | None = None
        self.steps = 0
        self.optimizer: Any = None
        self.forward: ForwardRows | None = None
        self._loader: Loader | None = None
        self._by_trainer = False
        self._trained_rows: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._samples = self._micro = 0
        self._source: str | None = None
        self._tokens: list[Batch] = []
        self._short = self._mixed = self._fetched = False

    def drew(self, iterator: Any, index: Any) -> None:
        """Note the indices that a sampler drew for one batch."""
        samples = len(index) if isinstance(index, (list, tuple)) else None
        _loader_of(iterator).drawn.append(samples)

    def fetched(self, iterator: Any, batch: Any, *, evaluating: bool) -> Batch | None:
        """Note a batch that a loader yielded; return it unless it is evaluated."""
        loader = _loader_of(iterator)
        samples = loader.drawn.popleft() if loader.drawn else None
        if evaluating or self.unclear:
            return None
        rows, short = rows_of(batch), False
        if getattr(iterator, "_dataset_kind", None) == _ITERABLE:
            # Its sampler draws as many as a batch holds, however many samples are left.
            short = rows is None or samples is None or rows < samples
        elif samples is not None and loader.size is not None:
            short = samples < loader.size
        fetched = Batch(samples if loader.size is not None else None, rows, short=short)
        if self.steps < READ_STEPS:
            fetched.read(batch)
        if loader is not self._loader:
            self._mixed = self._mixed or (self._fetched and not self._short)
            self._loader = loader
        self._fetched = True
        loader.ready.append(fetched)
        return fetched

    def ended(self) -> None:
        """Note that a loader has no further batch: this window may be a short one."""
        self._short = True

    @property
    def rows(self) -> int | None:
        """Return the rows of the micro batch that is being trained on, before it is counted."""
        if self._by_trainer:
            return self._trained_rows
        if self._loader is None:
            return self.forward.rows if self.forward else None
        return self._loader.ready[0].rows if self._loader.ready else None

    def trains_on(self, batch: Any) -> None:
        """Count the batch of the Trainer's training step."""
        self._by_trainer, self._trained_rows = True, rows_of(batch)
        self._take(self._trained_rows)

    def went_back(self) -> None:
        """Count the micro batch of a backward pass, unless the Trainer's step has."""
        if self._by_trainer:
            return
        if self.forward is not None and self._loader is None:
            self._add(self.forward.take(), FORWARD)
        else:
            self._take(None)

    def _take(self, rows: int | None) -> None:
        """Count a micro batch: the next one of the loader, or `rows` where none was fetched."""
        loader = self._loader
        if loader is None or not loader.ready:
            if rows is None:  # several backward passes over one batch
                self._micro += 1
            else:
                self._add(rows, ROWS)
            return
        batch = loader.ready.popleft()
        self._short = self._short or batch.short
        self._tokens.append(batch)
        differs = rows is not None and batch.rows is not None and rows != batch.rows
        if batch.samples is None or differs:
            self._add(batch.rows if rows is None else rows, ROWS)
        else:
            self._add(batch.samples, TRAINER if self._by_trainer else LOADER)

    def _add(self, samples: int | None, source: str) -> None:
        self._micro += 1
        self._samples += samples or 0
        if samples is None or self._source not in (None, source):
            source = ROWS
        self._source = source

    def window(self) -> dict[str, object]:
        """Return what the optimizer step was made of, and begin the next one."""
        self.steps += 1
        if self._loader is not None and len(self._loader.ready) > _AHEAD:
            self.unclear = "more batches are fetched than are trained on"
            self._loader.ready.clear()
        is_known = self._samples and not (self._mixed or self.unclear)
        read = self._tokens if is_known else []
        found: dict[str, object] = {
            "samples": self._samples if is_known else None,
            "micro_batches": self._micro,
            "label_tokens": _sum(batch.label_tokens for batch in read),
            "label_sum": _sum(batch.label_sum for batch in read),
            "sequences": _sum(batch.sequences for batch in read),
            "learning_rate": self._learning_rate(),
            "short": self._short,
            "counted_by": self._source if is_known else None,
            "unclear": self.unclear or (None if is_known else self._why()),
        }
        self._begin()
        return found

    def _why(self) -> str:
        if self._mixed:
            return "batches of several loaders are in one step"
        return "no batch of a DataLoader or of one forward pass is known for the step"

    def _learning_rate(self) -> float | None:
        groups = getattr(self.optimizer, "param_groups", None) or [{}]
        rate = groups[0].get("lr")
        return rate if isinstance(rate, float) else None  # a tensor's value may be on the device


class ForwardRows:
    """Rows of the first tensor that a model is called with, for loops without a DataLoader.

    `seen` gets the rows of the first call. The same model called again before the backward pass
    may take the same samples or others: then they are not counted.
    """

    def __init__(self) -> None:
        self._model: int | None = None
        self.rows: int | None = None
        self._is_done = self._repeats = False

    def enter(self, module: Any, args: tuple[Any, ...], *, trains: bool) -> int | None:
        """Note a call of a module; return its rows if it is that of the model."""
        if self._model is None:
            if trains and module.training:
                self._model, self.rows = id(module), _first_rows(args)
                return self.rows
        elif self._is_done and id(module) == self._model:
            self._repeats = True
        return None

    def leave(self, module: Any, output: Any) -> None:
        """Note the end of a call; after an exception (no output) the model may be called anew."""
        if id(module) != self._model:
            return
        self._is_done = True
        if output is None:
            self._model = None

    def take(self) -> int | None:
        """Return the rows of the forward pass that a backward pass has finished."""
        rows = None if self._repeats else self.rows
        self._model, self.rows, self._is_done, self._repeats = None, None, False, False
        return rows


def epoch_of(iterator: Any) -> dict[str, object]:
    """Return the size of an epoch: samples, batches of this process, and `drop_last`."""
    sampler = getattr(iterator, "_index_sampler", None)
    inner = getattr(sampler, "batch_sampler", sampler)
    is_iterable = getattr(iterator, "_dataset_kind", None) == _ITERABLE
    drop_last = getattr(inner, "drop_last", None)
    return {
        "dataset_samples": None if is_iterable else _length(getattr(iterator, "_dataset", None)),
        "batches": None if is_iterable else _length(sampler),
        "drop_last": drop_last if isinstance(drop_last, bool) else None,
    }


def rows_of(batch: Any) -> int | None:
    """Return the first size of a batch's tensors."""
    if hasattr(batch, "keys"):
        named = next((batch[name] for name in _FIRST if name in batch), None)
        return _first_rows((named, *batch.values()))
    return _first_rows(batch if isinstance(batch, (list, tuple)) else (batch,))


def _first_rows(values: Any) -> int | None:
    shapes: Any = (getattr(value, "shape", ()) for value in values)
    return next((int(shape[0]) for shape in shapes if len(shape) > 0), None)


def _loader_of(iterator: Any) -> Loader:
    loader: Loader | None = getattr(iterator, _KEY, None)
    if loader is None:
        sampler = getattr(iterator, "_index_sampler", None)
        sizes = (getattr(one, "batch_size", None) for one in _nested(sampler))
        # A sampler of another kind may draw packs, or as many samples as make so many tokens.
        is_plain = type(sampler).__name__ in _SAMPLERS
        size = next((size for size in sizes if isinstance(size, int)), None)
        loader = Loader(size if is_plain else None)
        setattr(iterator, _KEY, loader)
    return loader


def _nested(sampler: Any) -> tuple[Any, Any]:
    """Return a sampler and the one that it wraps, as those that skip batches do."""
    return sampler, getattr(sampler, "batch_sampler", None)


def _tensor(batch: Any, name: str) -> Any:
    """Return a tensor of a mapping if it is in host memory."""
    value = batch[name] if hasattr(batch, "keys") and name in batch else None
    device = getattr(getattr(value, "device", None), "type", None)
    return value if device == "cpu" else None


def _sum(values: Any) -> int | None:
    known = list(values)
    return None if not known or None in known else sum(known)


def _length(of: Any) -> int | None:
    try:
        return len(of)
    except (TypeError, NotImplementedError):
        return None
