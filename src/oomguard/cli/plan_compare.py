"""`plan --compare`: several configs side by side on the same GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from oomguard.cli.columns import aligned, csv_text
from oomguard.cli.output import echo, secho
from oomguard.cli.plan_job import PlannedJob
from oomguard.cli.plan_table import missing_lines
from oomguard.cli.plan_text import COSTS, show_value
from oomguard.estimate.memory import Term
from oomguard.job.plan import Plan, as_json
from oomguard.units import show_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One config with its forecast."""

    file: Path
    planned: PlannedJob
    answer_seconds: float

    @property
    def fits(self) -> str:
        """Return the verdict on the requested config."""
        return self.planned.forecast.asked.fits.value

    @property
    def change(self) -> str:
        """Return the strategies with which it fits first, with their cost."""
        fit = self.planned.forecast.first_fit
        if fit is None:
            return "none needed" if self.fits == "yes" else "none known"
        return f"{', '.join(dict.fromkeys(fit.path))} [{COSTS[fit.fidelity]}]"


def print_compared(configs: Sequence[Compared], *, gpu: str | None) -> None:
    """Print a column for each config: what differs in the plans, then the peak and its terms."""
    size = show_bytes(configs[0].planned.capacity.device_bytes)
    echo(f"on {f'{gpu} ({size} usable)' if gpu else size}")
    echo()
    table = [
        ["", *(str(one.file) for one in configs)],
        *([name, *(cell(one) for one in configs)] for name, cell in _ROWS),
        *_differences(configs),
        *_terms(configs),
    ]
    lines = list(aligned(table))
    secho(lines[0], bold=True)
    for line in lines[1:]:
        echo(line)
    echo()
    for one in configs:
        for line in missing_lines(one.planned):
            secho(f"{one.file}: {line}", fg="yellow")
    shared = set.intersection(*(set(one.planned.notes) for one in configs))
    for note in [note for note in configs[0].planned.notes if note in shared]:
        echo(f"note: {note}")
    for one in configs:
        for note in dict.fromkeys(one.planned.notes):
            if note not in shared:
                echo(f"note: {one.file}: {note}")


_ROWS: tuple[tuple[str, Callable[[Compared], str]], ...] = (
    ("framework", lambda one: one.planned.prepared.job.framework),
    ("model", lambda one: one.planned.model.name),
    ("trained", lambda one: one.planned.trained(one.planned.forecast.asked.plan).what),
    ("GPUs", lambda one: str(one.planned.prepared.job.world.size)),
    ("global batch", lambda one: str(one.planned.prepared.job.global_batch)),
    ("fits as requested", lambda one: one.fits),
    ("first change that fits", lambda one: one.change),
    ("method", lambda one: one.planned.forecast.asked.estimate.method),
    ("expected", lambda one: show_bytes(one.planned.forecast.asked.estimate.expected_bytes)),
    ("from", lambda one: show_bytes(one.planned.forecast.asked.estimate.low_bytes)),
    ("to", lambda one: show_bytes(one.planned.forecast.asked.estimate.high_bytes)),
)


def _differences(configs: Sequence[Compared]) -> Iterator[list[str]]:
    """Yield the fields in which the requested plans differ; `-`: no such setting, or not known."""
    plans = [one.planned.forecast.asked.plan for one in configs]
    for name in (field.name for field in fields(Plan)):
        values = [as_json(getattr(plan, name)) for plan in plans]
        shown = ["-" if value is None else show_value(value) for value in values]
        if len(set(shown)) > 1:
            yield [name, *shown]


def _terms(configs: Sequence[Compared]) -> Iterator[list[str]]:
    """Yield what the expected peak is made of."""
    terms = [one.planned.forecast.asked.estimate.terms for one in configs]
    for term in Term:
        if any(term.value in each for each in terms):
            yield [term.value, *(show_bytes(each.get(term.value, 0)) for each in terms)]


def compared_csv(configs: Sequence[Compared]) -> str:
    """Return a row for each config, sizes in bytes."""
    sizes = ("expected_bytes", "low_bytes", "high_bytes")
    header = ("file", "framework", "model", "gpus", "global_batch", "fits", *sizes, "method")
    rows = []
    for one in configs:
        job, asked = one.planned.prepared.job, one.planned.forecast.asked
        rows.append(
            (
                one.file,
                job.framework,
                one.planned.model.name,
                job.world.size,
                job.global_batch,
                one.fits,
                *(getattr(asked.estimate, name) for name in sizes),
                asked.estimate.method,
                one.change,
            )
        )
    return csv_text([(*header, "first_change"), *rows])


def compared_document(configs: Sequence[Compared]) -> dict[str, object]:
    """Return the configs as `--json` prints them."""
    return {
        "capacity_bytes": configs[0].planned.capacity.device_bytes,
        "configs": [_document(one) for one in configs],
        "seconds": round(sum(one.planned.seconds for one in configs), 3),
        "answer_seconds": round(sum(one.answer_seconds for one in configs), 3),
    }


def _document(one: Compared) -> dict[str, object]:
    planned = one.planned
    job, found = planned.prepared.job, planned.forecast
    return {
        "file": str(one.file),
        "framework": job.framework,
        "model": planned.model.name,
        "trained": planned.trained(found.asked.plan),
        "gpus": job.world.size,
        "global_batch": job.global_batch,
        "asked": found.asked,
        "first_fit": found.first_fit,
        "method": found.asked.estimate.method,
        "unmodelled": planned.unmodelled,
        "rejected": planned.rejected,
        "notes": list(dict.fromkeys(planned.notes)),
    }
