"""What the options of a run ruled out, where its ladder is exhausted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder, Rung
from oomguard.ladder.strategy_contract import Fidelity, Step, Untried

#: Returns the next step for a job with a ladder.
NextRung = Callable[[Job, Ladder], Rung]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wider:
    """One option that could allow more: `needs` is what the user would do."""

    needs: str
    allow: Fidelity | None = None
    package: str | None = None
    all_strategies: bool = False

    def applied(self, job: Job, ladder: Ladder) -> tuple[Job, Ladder]:
        """Return job and ladder with it."""
        if self.allow is not None:
            ladder = replace(ladder, allow=self.allow)
        if self.all_strategies:
            ladder = replace(ladder, strategies=ladder.known)
        if self.package is not None:
            job = replace(job, packages=job.packages | {self.package})
        return job, ladder


def with_more_attempts(rung: Rung, most: int) -> tuple[Untried, ...]:
    """Return the step that only the number of attempts ruled out."""
    needs = f"--max-attempts above {most}"
    return (Untried(needs=needs, step=rung.step),) if rung.step is not None else ()


def with_other_options(job: Job, ladder: Ladder, next_rung: NextRung) -> tuple[Untried, ...]:
    """Return the step that would follow with each option widened.

    Options are widened together only where none alone allows a step.
    """
    wider = list(_wider(job, ladder))
    for count in range(1, len(wider) + 1):
        found: list[Untried] = []
        for chosen in combinations(wider, count):
            step = _next_step(job, ladder, chosen, next_rung)
            if step is not None and all(step != one.step for one in found):
                found.append(Untried(needs=" and ".join(one.needs for one in chosen), step=step))
        if found:
            return tuple(found)
    return ()


def _next_step(
    job: Job, ladder: Ladder, chosen: Sequence[_Wider], next_rung: NextRung
) -> Step | None:
    for one in chosen:
        job, ladder = one.applied(job, ladder)
    return next_rung(job, ladder).step


def _wider(job: Job, ladder: Ladder) -> Iterator[_Wider]:
    """Yield each option of the run that may rule something out, the least costly first."""
    known = ladder.known or ladder.strategies
    for package in sorted({name for one in known for name in one.needs} - job.packages):
        yield _Wider(needs=f"{job.python} -m pip install {package}", package=package)
    if len(known) > len(ladder.strategies):
        yield _Wider(needs="a launch without --ladder", all_strategies=True)
    for fidelity in Fidelity:
        if fidelity.cost > ladder.allow.cost:
            yield _Wider(needs=f"--allow {fidelity.value}", allow=fidelity)
