"""What the processes of an attempt reported over time, thinned out for plots. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from oomguard.evidence.verdict import Phase
from oomguard.process.messages import AnyReport, OomReport, ProcessMemory
from oomguard.run.observer import memory_of

#: Points that are kept of a series, and changes of phase of a process.
POINTS, CHANGES = 500, 2000
Points = tuple[tuple[float, float], ...]


class Thinned:
    """A series of unknown length in bounded memory: `join` makes one of two neighbours."""

    def __init__(self, join: Callable[[float, float], float]) -> None:
        self._join = join
        self._kept: list[tuple[float, float]] = []
        self._stride = self._waiting = 1

    def add(self, at: float, value: float) -> None:
        """Add a point; one that lies before the last is ignored."""
        if self._kept and at < self._kept[-1][0]:
            return
        if self._waiting > 1 and self._kept:
            self._waiting -= 1
            before = self._kept[-1]
            self._kept[-1] = (before[0], self._join(before[1], value))
            return
        self._kept.append((at, value))
        self._waiting = self._stride
        if len(self._kept) >= 2 * POINTS:
            self._kept = list(thinned(self._kept, POINTS, self._join))
            self._stride *= 2
            self._waiting = self._stride

    @property
    def points(self) -> Points:
        """The points that are kept."""
        return tuple(self._kept)


def thinned(
    points: Iterable[tuple[float, float]], most: int, join: Callable[[float, float], float]
) -> Points:
    """Return at most `most` points (at least 2), neighbours joined."""
    kept = list(points)
    while len(kept) > max(2, most):
        pairs = zip(kept[::2], kept[1::2], strict=False)
        odd = kept[-1:] if len(kept) % 2 else []
        kept = [(one[0], join(one[1], two[1])) for one, two in pairs] + odd
    return tuple(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Memory of one process on a GPU, or on the host where `device` is None, in bytes by seconds.

    `failed` are the points at which an allocation failed; `capacity_bytes` is the size of the GPU.
    """

    pid: int
    rank: int | None
    device: int | None
    points: Points
    failed: Points = ()
    capacity_bytes: int | None = None

    @property
    def peak_bytes(self) -> float:
        """The highest point."""
        return max((value for _, value in self.points), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A time in which a process was in one phase, in seconds of its attempt."""

    phase: Phase
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSeries:
    """What is known of one attempt over time: `phases` by process, the loss by `loss_unit`."""

    attempt: int
    tracks: tuple[Track, ...]
    phases: dict[int, tuple[Stretch, ...]]
    losses: Points = ()
    loss_unit: str = ""


def series_of(
    attempt: int,
    reports: Iterable[AnyReport],
    losses: Iterable[tuple[str, float, float]] = (),
    *,
    private_data: bool,
) -> AttemptSeries:
    """Return the series of an attempt; times count from its first report.

    On the host they are of private data, or of the resident set.
    """
    fold = _Fold(private_data=private_data)
    for report in reports:
        fold.take(report)
    loss, unit = Thinned(lambda one, two: (one + two) / 2), ""
    for unit_of, at, value in losses:
        unit = unit or unit_of
        if unit_of == unit:
            loss.add(at, value)
    return AttemptSeries(
        attempt=attempt, tracks=tuple(fold.tracks()),
        phases={pid: tuple(fold.stretches(pid)) for pid in fold.changes},
        losses=loss.points, loss_unit=unit,
    )  # fmt: skip


class _Fold:
    def __init__(self, *, private_data: bool) -> None:
        self._private_data = private_data
        self._begin: float | None = None
        self._end: dict[int, float] = {}
        self._ranks: dict[int, int | None] = {}
        self._points: dict[tuple[int, int | None], Thinned] = {}
        self._failed: dict[tuple[int, int | None], list[tuple[float, float]]] = {}
        self._sizes: dict[int, int] = {}
        self.changes: dict[int, list[tuple[float, Phase]]] = {}

    def take(self, report: AnyReport) -> None:
        if self._begin is None:
            self._begin = report.t
        at = max(0.0, report.t - self._begin)
        pid = report.pid
        self._ranks[pid] = report.rank
        self._end[pid] = max(at, self._end.get(pid, 0.0))
        changes = self.changes.setdefault(pid, [])
        if len(changes) < CHANGES and (not changes or changes[-1][1] is not report.phase):
            changes.append((at, report.phase))
        memory = memory_of(report)
        if memory is None:
            return
        for device, value in self._measured(memory):
            key = (pid, device)
            self._points.setdefault(key, Thinned(max)).add(at, value)
            if isinstance(report, OomReport) and (report.device == "cuda") == (device is not None):
                self._failed.setdefault(key, []).append((at, value))

    def _measured(self, memory: ProcessMemory) -> Iterator[tuple[int | None, int]]:
        data = max(memory.data_bytes or 0, memory.peak_data_bytes or 0)
        host = data if self._private_data else memory.rss_bytes
        if host:
            yield None, host
        for card in memory.cuda:
            if card.total_bytes:
                self._sizes[card.device] = card.total_bytes
            if card.reserved_bytes is not None:
                yield card.device, card.reserved_bytes

    def tracks(self) -> Iterator[Track]:
        for (pid, device), kept in self._points.items():
            yield Track(
                pid=pid, rank=self._ranks[pid], device=device, points=kept.points,
                failed=tuple(self._failed.get((pid, device), [])[:POINTS]),
                capacity_bytes=None if device is None else self._sizes.get(device),
            )  # fmt: skip

    def stretches(self, pid: int) -> Iterator[Stretch]:
        changes = self.changes[pid]
        whole = len(changes) < CHANGES
        ends = [at for at, _ in changes[1:]] + ([self._end[pid]] if whole else [])
        for (begin, phase), end in zip(changes, ends, strict=False):
            yield Stretch(phase=phase, begin=begin, end=end)
