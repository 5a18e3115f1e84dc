"""Shorter paths up the ladder: the applied strategies without some that may not be needed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder

Path = tuple[str, ...]


def without(path: Path, name: str, count: int) -> Path:
    """Return a path without the last `count` occurrences of a strategy."""
    places = [place for place, one in enumerate(path) if one == name][-count:]
    return tuple(one for place, one in enumerate(path) if place not in places)


def cheaper_paths(job: Job, path: Path, ladder: Ladder) -> Iterator[Path]:
    """Yield the path without one strategy that has a cost, the most expensive one first."""
    costs = {strategy.id: strategy.fidelity_for(job).cost for strategy in ladder.strategies}
    costly = [s.id for s in reversed(ladder.strategies) if s.id in path and costs[s.id]]
    for name in sorted(costly, key=lambda one: -costs[one]):
        yield from (without(path, name, count) for count in range(path.count(name), 0, -1))


def cheapest(job: Job, path: Path, ladder: Ladder, fits: Callable[[Plan], bool]) -> Path:
    """Return a path whose plan fits and of which no costly strategy can be left out."""
    for shorter in cheaper_paths(job, path, ladder):
        retaken = ladder.retake(job, shorter)
        if retaken is not None and fits(retaken[0]):
            return cheapest(job, shorter, ladder, fits)
    return path
