"""Turns the trace of a few layers into that of many: the middle layers are all alike."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby

from .trace import MemoryEvent, Trace

FIRST, SECOND = 1, 2  # the two layers, alike, between which the others are put
OUTSIDE = -(1 << 62)  # sorts before every layer
#: A storage by where it was allocated: visit of its layer, position in the visit, layer.
Key = tuple[int, int, int]


class Irregular(Exception):  # noqa: N818  the caller then traces all layers
    """The middle layers are not alike."""


@dataclass(slots=True)
class _Visit:
    """The events of one layer in one go, or those between layers (`layer` None)."""

    layer: int | None
    number: int
    events: list[MemoryEvent] = field(default_factory=list)


def expand(trace: Trace, stack: str, copies: int) -> Trace:
    """Insert `copies` layers into a trace whose layers 1 and 2 are alike.

    Raises:
        Irregular: if they are not.
    """
    if copies == 0:
        return trace
    return _Expansion(_visits(trace.events, stack), trace, copies).run()


def _visits(events: list[MemoryEvent], stack: str) -> list[_Visit]:
    """Cut the events where the layer changes; what follows a layer outside of any is its own."""
    visits = [_Visit(None, 0)]
    seen: dict[int, int] = defaultdict(int)
    for event in events:
        layer = event.layer[1] if event.layer is not None and event.layer[0] == stack else None
        if layer is not None and layer != visits[-1].layer:
            visits.append(_Visit(layer, seen[layer]))
            seen[layer] += 1
        visits[-1].events.append(event)
    return visits


class _Expansion:
    """The state of one expansion: storages by key, and the new trace."""

    def __init__(self, visits: list[_Visit], trace: Trace, copies: int) -> None:
        self._visits = visits
        self._terms = trace.terms
        self._copies = copies
        self._keys = _keys(visits)
        for visit in visits:
            _order(visit, self._keys)
        self._pairs = _pairs(visits)
        self._ids: dict[Key, int] = {}
        self._next = max(self._keys, default=0) + 1
        self._out = Trace()

    def run(self) -> Trace:
        for visit in self._visits:
            pair = self._pairs.get(visit.number) if visit.layer in (FIRST, SECOND) else None
            if pair is None or visit is pair[0]:
                self._emit(visit)
            if pair is not None and visit is pair[0]:
                self._emit_copies(visit, pair)
            elif pair is not None:
                self._emit(visit)
        return self._out

    def _emit_copies(self, visit: _Visit, pair: tuple[_Visit, _Visit]) -> None:
        layers = range(SECOND, SECOND + self._copies)
        ascending = visit.layer == FIRST
        first, second = pair if ascending else (pair[1], pair[0])
        for layer in layers if ascending else reversed(layers):
            for one, two in zip(first.events, second.events, strict=True):
                self._copy(one, two, layer)

    def _emit(self, visit: _Visit) -> None:
        """Write a visit as it was traced, layers from the second on moved up."""
        for event in visit.events:
            key = self._keys[event.storage]
            self._write(event, self._moved(key, visit.layer))

    def _moved(self, key: Key, visitor: int | None) -> Key:
        """Return which storage is meant after layers were put between the first and second."""
        number, position, layer = key
        upper = visitor is not None and visitor >= SECOND
        if layer in (FIRST, SECOND) and (visitor is None or abs(visitor - layer) > 1):
            raise Irregular("a middle layer's storage is released elsewhere")
        if layer > SECOND or (upper and layer >= FIRST):
            return (number, position, layer + self._copies)
        return key

    def _copy(self, one: MemoryEvent, two: MemoryEvent, layer: int) -> None:
        """Write what layer `layer` would do, from what layers 1 and 2 did."""
        if (one.size_bytes) != (two.size_bytes):
            raise Irregular("layers differ in size")
        key, other = self._keys[one.storage], self._keys[two.storage]
        if key[2] < 0 or other[2] < 0:
            if one.size_bytes > 0:
                raise Irregular("a layer's storage is not its own")
            return  # released once, by the layer that really did
        offset = other[2] - SECOND
        if key[2] - FIRST != offset:
            raise Irregular("layers release each other's storages differently")
        generic = key if key[2] in (FIRST, SECOND) else other
        self._write(one, (generic[0], generic[1], layer + offset))

    def _write(self, event: MemoryEvent, key: Key) -> None:
        if event.size_bytes > 0:
            self._ids[key] = self._next
            self._next += 1
            if event.storage in self._terms:
                self._out.terms[self._ids[key]] = self._terms[event.storage]
        number = self._ids.get(key)
        if number is None:
            raise Irregular("a storage is released that was never there")
        self._out.events.append(MemoryEvent(number, event.size_bytes, event.layer))


def _keys(visits: list[_Visit]) -> dict[int, Key]:
    """Return every storage by where it was allocated; outside of layers, layer -1."""
    keys: dict[int, Key] = {}
    for index, visit in enumerate(visits):
        for position, event in enumerate(visit.events):
            if event.size_bytes > 0:
                keys[event.storage] = (
                    (index, position, -1)
                    if visit.layer is None
                    else (visit.number, position, visit.layer)
                )
    return keys


def _order(visit: _Visit, keys: dict[int, Key]) -> None:
    """Sort releases that follow each other: what a hash table lets go of comes in any order.

    By whose storage it is, seen from the layer that visits, and then by when it was allocated.
    """

    def place(event: MemoryEvent) -> tuple[int, int, int]:
        number, position, layer = keys[event.storage]
        return layer - (visit.layer or 0) if layer >= 0 else OUTSIDE, number, position

    ordered: list[MemoryEvent] = []
    for is_release, events in groupby(visit.events, key=lambda event: event.size_bytes < 0):
        run = list(events)
        ordered += sorted(run, key=place) if is_release else run
    visit.events = ordered


def _pairs(visits: list[_Visit]) -> dict[int, tuple[_Visit, _Visit]]:
    """Pair the visits of layers 1 and 2, in the order in which they came."""
    found: dict[int, list[_Visit]] = defaultdict(list)
    places: dict[int, list[int]] = defaultdict(list)
    for index, visit in enumerate(visits):
        if visit.layer in (FIRST, SECOND):
            found[visit.number].append(visit)
            places[visit.number].append(index)
    for number, pair in found.items():
        if len(pair) != len((FIRST, SECOND)) or places[number][1] != places[number][0] + 1:
            raise Irregular("the middle layers are not visited one after the other")
        if len(pair[0].events) != len(pair[1].events):
            raise Irregular("the middle layers do not do the same")
    return {number: (pair[0], pair[1]) for number, pair in found.items()}
