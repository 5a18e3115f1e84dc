"""From the trace of a few layers to that of many, on a toy loop whose full trace is known."""

from __future__ import annotations

import sys
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oomguard.tracer

sys.path.append(str(oomguard.tracer.PATH))
from oomguard_tracer.expand import Irregular, expand
from oomguard_tracer.trace import MemoryEvent, Trace, peak, rounded

STACK = "layers"


class Toy:
    """Writes the trace of a loop over `depth` layers: weights, forward, backward, step."""

    def __init__(self, depth: int, sizes: list[int]) -> None:
        self.trace = Trace()
        self._depth = depth
        self._weight, self._saved, self._out, self._work, self._head = sizes
        self._count = 0

    def run(self, steps: int) -> Trace:
        weights = [self._new(self._weight, layer, "weights") for layer in self._layers()]
        for _ in range(steps):
            self._step(len(weights))
        return self.trace

    def _step(self, count: int) -> None:
        saved = []
        hidden = self._new(self._out, None)
        for layer in self._layers():
            saved.append(self._new(self._saved, layer))
            after = self._new(self._out, layer)
            self._free(hidden, None)  # after the layer is left
            hidden = after
        logits = self._new(self._head, None, "logits_and_loss")
        grad = self._new(self._out, None)
        self._free(logits, None)
        grads = [0] * count
        for layer in reversed(self._layers()):
            work = self._new(self._work, layer)
            grads[layer] = self._new(self._weight, layer, "gradients")
            below = self._new(self._out, layer)
            self._free(grad, layer)  # the layer above allocated it
            self._free(saved[layer], layer)
            self._free(work, layer)
            grad = below
        self._free(grad, None)
        self._free(hidden, None)
        for layer in self._layers():
            self._free(grads[layer], layer)

    def _layers(self) -> range:
        return range(self._depth)

    def _new(self, size: int, layer: int | None, term: str | None = None) -> int:
        self._count += 1
        place = None if layer is None else (STACK, layer)
        self.trace.events.append(MemoryEvent(self._count, size, place))
        if term:
            self.trace.terms[self._count] = term
        return self._count

    def _free(self, storage: int, layer: int | None) -> None:
        (size,) = [
            e.size_bytes for e in self.trace.events if e.storage == storage and e.size_bytes > 0
        ]
        place = None if layer is None else (STACK, layer)
        self.trace.events.append(MemoryEvent(storage, -size, place))


SIZES = st.lists(st.integers(1, 1 << 22), min_size=5, max_size=5)


@given(sizes=SIZES, extra=st.integers(0, 6), steps=st.integers(1, 2))
def test_a_few_layers_give_the_trace_of_all(sizes, extra, steps):
    few, all_layers = Toy(4, sizes).run(steps), Toy(4 + extra, sizes).run(steps)
    grown = expand(few, STACK, extra)
    assert in_runs(grown) == in_runs(all_layers)
    assert peak(grown) == peak(all_layers)


def in_runs(trace: Trace) -> list[list[int]]:
    """Return the sizes, releases that follow each other in no order: they come in any."""
    runs = groupby(trace.events, key=lambda event: event.size_bytes < 0)
    sizes = [(is_release, [e.size_bytes for e in run]) for is_release, run in runs]
    return [sorted(run) if is_release else run for is_release, run in sizes]


@given(data=st.data())
def test_alike_layers_may_let_go_in_another_order(data):
    trace = Toy(4, [3000, 700, 90000, 5000, 1200]).run(2)
    before = expand(trace, STACK, 3)
    shuffled: list[MemoryEvent] = []
    for (is_release, _), run in groupby(trace.events, key=lambda e: (e.size_bytes < 0, e.layer)):
        events = list(run)
        shuffled += data.draw(st.permutations(events)) if is_release else events
    assert in_runs(expand(Trace(shuffled, trace.terms), STACK, 3)) == in_runs(before)


@given(sizes=SIZES, extra=st.integers(1, 6))
def test_every_storage_of_an_expanded_trace_is_released_as_often_as_it_was_made(sizes, extra):
    alive: set[int] = set()
    for event in expand(Toy(4, sizes).run(2), STACK, extra).events:
        if event.size_bytes > 0:
            assert event.storage not in alive
            alive.add(event.storage)
        else:
            alive.remove(event.storage)
    assert len(alive) == 4 + extra  # the weights


def test_layers_that_differ_are_refused():
    trace = Toy(4, [1, 2, 3, 4, 5]).run(1)
    at = next(i for i, e in enumerate(trace.events) if e.layer == (STACK, 2))
    changed = trace.events[at]
    trace.events = [
        e._replace(size_bytes=9 if e.size_bytes > 0 else -9) if e.storage == changed.storage else e
        for e in trace.events
    ]
    with pytest.raises(Irregular):
        expand(trace, STACK, 2)


def test_a_peak_is_the_sum_of_its_terms_in_rounded_bytes():
    trace = Trace(
        events=[MemoryEvent(1, 100, None), MemoryEvent(2, 1000, None), MemoryEvent(2, -1000, None)],
        terms={1: "weights"},
    )
    found = peak(trace)
    assert found.terms == {"weights": 512, "activations": 1024}
    assert found.size_bytes == rounded(100) + rounded(1000)
