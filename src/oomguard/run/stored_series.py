"""Read what the attempts of a run left for plots: reports of their processes, printed losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from oomguard.process.limits import CapBy
from oomguard.run.printed_loss import losses_in
from oomguard.run.recover import attempt_reports
from oomguard.run.report import FitReport
from oomguard.run.series import AttemptSeries, series_of

#: Of a longer log, and of a longer line in it, the rest is not read for losses.
LOG_BYTES, LOG_LINE_BYTES = 256 << 20, 1 << 16


def stored_series(run: Path, report: FitReport) -> Iterator[AttemptSeries]:
    """Yield the series of each attempt whose files are there.

    A cap on each process counts private data; without one the resident set is what a machine has.
    """
    limits = report.limits
    private_data = bool(limits.host_memory_bytes) and limits.host_memory_by == CapBy.RLIMIT
    for attempt in report.attempts:
        folder = run / "attempts" / f"{attempt.number:03d}"
        yield series_of(
            attempt.number, attempt_reports(folder), _losses(folder), private_data=private_data
        )


def _losses(folder: Path) -> Iterator[tuple[str, float, float]]:
    left = LOG_BYTES
    with suppress(OSError), (folder / "log.txt").open("rb") as log:
        while left > 0 and (line := log.readline(LOG_LINE_BYTES)):
            left -= len(line)
            if b"loss" in line:
                yield from losses_in(line.decode("utf-8", "replace"))
