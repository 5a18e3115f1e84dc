# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Follows every storage of a run through weak references, and says which layer each belongs to."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .fakes import DEVICE, device_of
from .trace import MemoryEvent, Trace

Layer = tuple[str, int]
Place = tuple["Layer | None", "str | None"]
NOWHERE: Place = (None, None)
#: Accumulating a gradient has no place of its own in the forward pass.
NO_SEQUENCE = 1 << 62
#: Step counts and norms, one per parameter: a trifle, and PyTorch keeps most of them on the host.
SCALAR_BYTES = 8
#: Attention scores and masks have rows and heads before their two equal dimensions, in one or two;
#: what has the rows alone there is a hidden state as wide as the sequence is long.
MATRICES = 3
TWO_LAYERS = 2


class Recorder(TorchDispatchMode):
    """Records a `Trace` of everything that is allocated while it is entered.

    A place is (layer, term): the repeated layer that runs, and the term that its memory counts
    towards, None where only the storage itself can tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.sequence_length = 0
        self.rows = 0
        self.stepping = False
        self.closed = False
        self._alive: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        self._layers: list[Layer | None] = []
        self._places: list[Place] = []
        self._starts: list[int] = [0]
        self._visited: list[Place] = [NOWHERE]
        self._grad_layers: dict[int, Layer | None] = {}
        self._count = 0
        self._rest = NOWHERE
        self._released: list[MemoryEvent] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is DEVICE:
            return device_of(args[0])
        if not self._places and torch.is_grad_enabled():
            self._follow_recomputation()
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._see(out, args)
        elif isinstance(out, (list, tuple)):
            self._see_all(out, args)
        return out

    def close(self) -> None:
        """End the recording: what is let go from now on is no part of the run."""
        self._flush()
        self.closed = True

    def adopt(self, tensor: torch.Tensor, term: str, layer: Layer | None = None) -> None:
        """Record a tensor that was there before the run, and what it is."""
        self._see(tensor, (), (layer, term))
        self.label(tensor, term)

    def label(self, tensor: torch.Tensor, term: str) -> None:
        """Label a tensor once its role is known."""
        known = self._alive.get(tensor.untyped_storage()._cdata)
        if known is not None:
            self.trace.terms[known[0]] = term

    def owns(self, tensor: torch.Tensor, layer: Layer | None) -> None:
        """Record which layer a parameter belongs to, for when its gradient is accumulated."""
        self._grad_layers[id(tensor)] = layer

    @contextmanager
    def inside(self, place: Place) -> Iterator[None]:
        """Attribute what is allocated here, and in its backward pass, to a place."""
        self.enter(place)
        try:
            yield
        finally:
            self.leave()

    def enter(self, place: Place) -> None:
        """Go into a place; what it leaves open, the outer one says.

        A layer that a checkpoint runs again in backward lies in no other place.
        """
        layer, term = place
        outer = self._places[-1] if self._places else NOWHERE
        self._places.append((layer or outer[0], term or outer[1]))
        self._mark()

    def leave(self) -> None:
        """Go back to the outer place."""
        self._places.pop()
        self._mark()

    def rest(self, place: Place) -> None:
        """Set the place of what runs outside of every place from now on."""
        self._rest = place
        self._mark()

    def _mark(self) -> None:
        """Note from which autograd node on the present place holds."""
        place = self._places[-1] if self._places else self._rest
        self._note(torch.autograd._get_sequence_nr(), place)

    def _follow_recomputation(self) -> None:
        """Attribute what a checkpoint recomputes in backward to where it ran first."""
        if torch._C._current_autograd_node() is not None:
            place = self.here()
            if place != self._visited[-1]:
                # The node of the operator that is about to run has taken its number already.
                self._note(torch.autograd._get_sequence_nr() - 1, place)

    def _note(self, sequence: int, place: Place) -> None:
        if self._starts[-1] >= sequence:
            self._visited[-1] = place
        else:
            self._starts.append(sequence)
            self._visited.append(place)

    def here(self) -> Place:
        """Return the place of what runs now: a module's forward, or the backward of its nodes."""
        if self._places:
            return self._places[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return NOWHERE if self.stepping else self._rest
        sequence = node._sequence_nr()
        if sequence >= NO_SEQUENCE:
            return self._grad_layers.get(id(getattr(node, "variable", None))), None
        return self._visited[bisect_right(self._starts, sequence) - 1]

    def _see_all(self, out: Any, args: tuple[Any, ...]) -> None:
        """Pair the results of a foreach operator with its inputs: result i is of layer i's kind."""
        lists = [a for a in args if isinstance(a, (list, tuple)) and len(a) == len(out)]
        for index, item in enumerate(out):
            if isinstance(item, torch.Tensor):
                self._see(item, (lists[0][index],) if lists else args)

    def _see(self, tensor: torch.Tensor, args: tuple[Any, ...], place: Place | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size_bytes = storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            if known[1] == size_bytes:
                return
            self._gone(key, known[0])
        if size_bytes == 0 or (self.stepping and size_bytes <= SCALAR_BYTES):
            return
        layer, term = place or self.here()
        if layer is None and self.stepping:
            layer = self._layer_of(args)
        number = self._new(size_bytes, layer, term or self._guess(tensor))
        reference = weakref.ref(storage, lambda _, key=key, number=number: self._gone(key, number))
        self._alive[key] = (number, size_bytes, reference)

    def _guess(self, tensor: torch.Tensor) -> str | None:
        shape = tensor.shape
        matrices = len(shape) > MATRICES or (len(shape) == MATRICES and shape[0] > self.rows)
        if matrices and shape[-1] == shape[-2] == self.sequence_length:
            return "attention_workspace"
        return "optimizer" if self.stepping else None

    def _layer_of(self, args: tuple[Any, ...]) -> Layer | None:
        for value in args:
            if isinstance(value, torch.Tensor):
                known = self._alive.get(value.untyped_storage()._cdata)
                if known is not None:
                    return self._layers[known[0]]
        return None

    def _new(self, size_bytes: int, layer: Layer | None, term: str | None) -> int:
        number = self._count
        self._count += 1
        self._flush()
        self._layers.append(layer)
        self.trace.events.append(MemoryEvent(number, size_bytes, layer))
        if term is not None:
            self.trace.terms[number] = term
        return number

    def _gone(self, key: int, number: int) -> None:
        known = self._alive.get(key)
        if self.closed or known is None or known[0] != number:
            return
        del self._alive[key]
        idle = not self._places and torch._C._current_autograd_node() is None
        if self.stepping or (idle and self._rest != NOWHERE):
            self._released.append(MemoryEvent(number, -known[1], self._layers[number]))
        else:
            self._flush()
            self.trace.events.append(MemoryEvent(number, -known[1], self.here()[0]))

    def _flush(self) -> None:
        """Write what was let go while nobody computed.

        What one or two layers let go belongs to the layer that is at work: a variable was
        reassigned there. More comes in any order, so in that of the layers.
        """
        if not self._released:
            return
        last = self.trace.events[-1].layer
        if len({last, *(event.layer for event in self._released)}) <= TWO_LAYERS:
            self._released = [event._replace(layer=last) for event in self._released]
        else:
            self._released.sort(key=lambda event: (event.layer or ("", -1), event.storage))
        self.trace.events.extend(self._released)
        self._released = []
