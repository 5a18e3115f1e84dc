"""`plan --sweep`: the peak of the job for each of several values, with the rest as requested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NoReturn

import click

from oomguard.cli.columns import aligned, csv_text
from oomguard.cli.output import echo, secho
from oomguard.cli.plan_job import PlannedJob
from oomguard.cli.plan_table import COLOURS, missing_lines, print_head
from oomguard.cli.replayed_job import SIZES, ReplayedJob, requested_size
from oomguard.errors import UsageError, did_you_mean
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.job.plan import Plan
from oomguard.predict.forecast import PlannedPeak
from oomguard.units import show_bytes

#: More rows than anybody reads.
MOST_ROWS = 1000
_WIDTH = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A size and the values to try."""

    field: str
    values: tuple[int, ...]


class SweptType(click.ParamType[Swept]):
    """FIELD=VALUE,VALUE,..."""

    name = "sweep"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Swept:
        """Parse a field and its values; fail with a usage error if they are not."""
        if isinstance(value, Swept):
            return value
        field, equals, values = str(value).partition("=")
        if field not in SIZES:
            guess = did_you_mean(field, SIZES) or f"It takes {', '.join(SIZES)}."
            self._refuse(f"{field!r} is not a size of a job. {guess}", param, ctx)
        words = values.split(",") if equals else []
        if not words or not all(word.isascii() and word.isdecimal() for word in words):
            self._refuse(f"{value!r} has no values: write {field}=512,1024", param, ctx)
        numbers = tuple(dict.fromkeys(map(int, words)))
        if min(numbers) < 1:
            self._refuse(f"{field} is at least 1", param, ctx)
        return Swept(field=field, values=numbers)

    def _refuse(
        self, what: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> NoReturn:
        self.fail(what, param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """The values of a row, and the peak of the plan that has them.

    `settings` are those to write for it, none where the framework refuses it: then `refused` is
    its message.
    """

    values: tuple[int, ...]
    peak: PlannedPeak
    global_batch: int
    refused: str | None
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Every combination of the values, the last field the fastest."""

    planned: PlannedJob
    fields: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    answer_seconds: float


def sweep(job: ReplayedJob, swept: Sequence[Swept]) -> Sweep:
    """Predict the job for every combination of values.

    Raises:
        UsageError: if the job has no such size, a size is swept twice, or there are too many rows.
    """
    fields = tuple(one.field for one in swept)
    for field in fields:
        requested_size(job.asked, field)
    if len(set(fields)) < len(fields):
        raise UsageError(
            f"--sweep {fields[0]} is given twice", next_step="Join its values by a comma."
        )
    combined = list(product(*(one.values for one in swept)))
    if len(combined) > MOST_ROWS:
        raise UsageError(f"{len(combined)} combinations are more than {MOST_ROWS}")
    rows = tuple(_row(job, fields, values) for values in combined)
    return Sweep(planned=job.planned(), fields=fields, rows=rows, answer_seconds=job.answer_seconds)


def _row(job: ReplayedJob, fields: Sequence[str], values: tuple[int, ...]) -> SweepRow:
    plan: Plan = job.with_values(dict(zip(fields, values, strict=True)))
    refused = job.refusal(plan)
    peak = job.peak(plan)
    if refused is not None and peak.fits is Fits.YES:
        peak = replace(peak, fits=Fits.UNSURE)
    return SweepRow(
        values=values,
        peak=peak,
        global_batch=plan.rank_batch * job.question.request.job.world.size,
        refused=refused,
        settings=() if refused is not None else tuple(job.settings(plan)),
    )


def print_sweep(found: Sweep, *, gpu: str | None) -> None:
    """Print a row for each combination."""
    print_head(found.planned, gpu)
    echo()
    capacity_bytes = found.planned.capacity.device_bytes
    whole = max(capacity_bytes, *(row.peak.estimate.high_bytes for row in found.rows))
    header = (*found.fields, "global batch", "fits", "expected", "from", "to", "method", "")
    drawn = (bar(row.peak.estimate, capacity_bytes, whole) for row in found.rows)
    cells = [(*_cells(row), line) for row, line in zip(found.rows, drawn, strict=True)]
    lines = list(aligned([header, *cells]))
    secho(lines[0], bold=True)
    for line, row in zip(lines[1:], found.rows, strict=True):
        secho(line, fg=COLOURS[row.peak.fits])
    for line in missing_lines(found.planned):
        secho(line, fg="yellow")
    for text in dict.fromkeys(row.refused for row in found.rows if row.refused):
        secho(f"refused: {text}", fg="yellow")
    echo()
    for note in dict.fromkeys(found.planned.notes):
        echo(f"note: {note}")


def bar(estimate: MemoryEstimate, capacity_bytes: int, whole_bytes: int) -> str:
    """Return the expected peak as a bar, on to its high bound in dots, and `|` at the capacity."""
    expected, high, capacity = (
        round(_WIDTH * size / whole_bytes)
        for size in (estimate.expected_bytes, estimate.high_bytes, capacity_bytes)
    )
    drawn = f"{'█' * expected}{'·' * (high - expected)}".ljust(capacity)
    return f"{drawn[:capacity]}|{drawn[capacity:]}"


def _cells(row: SweepRow) -> tuple[str, ...]:
    estimate = row.peak.estimate
    sizes = (estimate.expected_bytes, estimate.low_bytes, estimate.high_bytes)
    return (
        *map(str, row.values),
        str(row.global_batch),
        "refused" if row.refused else row.peak.fits.value,
        *map(show_bytes, sizes),
        estimate.method,
    )


def sweep_csv(found: Sweep) -> str:
    """Return the rows as CSV, sizes in bytes."""
    sizes = ("expected_bytes", "low_bytes", "high_bytes")
    header = (*found.fields, "global_batch", "fits", *sizes, "method", "refused")
    rows = (
        (
            *row.values,
            row.global_batch,
            row.peak.fits.value,
            *(getattr(row.peak.estimate, name) for name in sizes),
            row.peak.estimate.method,
            row.refused,
        )
        for row in found.rows
    )
    return csv_text([header, *rows])


def sweep_document(found: Sweep) -> dict[str, object]:
    """Return the rows as `--json` prints them."""
    planned = found.planned
    return {
        **planned.subject,
        "fields": found.fields,
        "rows": [
            {
                "values": dict(zip(found.fields, row.values, strict=True)),
                "fits": row.peak.fits,
                "method": row.peak.estimate.method,
                "global_batch": row.global_batch,
                "refused": row.refused,
                "settings": row.settings,
                "plan": row.peak.plan,
                "estimate": row.peak.estimate,
            }
            for row in found.rows
        ],
        "notes": list(dict.fromkeys(planned.notes)),
        "seconds": planned.seconds,
        "answer_seconds": found.answer_seconds,
    }
