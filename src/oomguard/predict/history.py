"""The history database: measured against predicted peaks, and which strategies worked.

One SQLite file that several runs may use at once. It only ever helps: a file that is locked,
broken, full or not writable is left alone, `lost` says why, and the run goes on without it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from oomguard.estimate.correct import Measured, Ratios, learnt
from oomguard.estimate.memory import Term
from oomguard.run.events import Predicted, Status
from oomguard.run.final_plan import next_path
from oomguard.run.state import Attempt, RunRecord

#: A file of a newer layout is left alone. The first one kept ratios of no terms: these are let go.
VERSION = 2
#: Seconds to wait for another run that writes.
PATIENCE_S = 2.0
#: So many of the newest measurements say how far predictions are off.
NEWEST = 15
_TABLES = """
CREATE TABLE IF NOT EXISTS measured (
    id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP,
    device TEXT NOT NULL, versions TEXT NOT NULL, framework TEXT NOT NULL, model TEXT NOT NULL,
    terms TEXT NOT NULL, allocated INTEGER NOT NULL, reserved INTEGER NOT NULL,
    loaded INTEGER, context INTEGER
);
CREATE INDEX IF NOT EXISTS measured_by ON measured (device, versions, framework);
CREATE TABLE IF NOT EXISTS fits (
    key TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, path TEXT NOT NULL
);
"""


_LEARN = """
INSERT INTO measured
    (device, versions, framework, model, terms, allocated, reserved, loaded, context)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_LEARNT = """
SELECT terms, allocated, reserved, loaded, context FROM measured
WHERE device = ? AND versions = ? AND framework = ? ORDER BY id DESC LIMIT ?
"""
_Row = tuple[str, int, int, int | None, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryKey:
    """Where a measurement holds: the GPU's name, the versions of what trains, the framework."""

    device: str
    versions: Mapping[str, str]
    framework: str
    model: str


class FitIndex:
    """The index in one file; None of its methods raises, or fails a run."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(platformdirs.user_data_dir("oomguard")) / "fits.sqlite"
        self.lost: str | None = None

    def add_measurement(self, setting: HistoryKey, measured: Measured) -> None:
        """Keep what was measured beside what was predicted."""
        terms = json.dumps({term.value: size for term, size in measured.terms.items()})
        peaks = (measured.allocated_bytes, measured.reserved_bytes)
        also = (measured.loaded_bytes, measured.context_bytes)
        with self._open() as base:
            if base is not None:
                base.execute(
                    _LEARN,
                    (*_place(setting), setting.model, terms, *peaks, *also),
                )

    def ratios(self, setting: HistoryKey) -> Ratios:
        """Return what the newest measurements of this device, versions and framework teach."""
        rows: list[_Row] = []
        with self._open() as base:
            if base is not None:
                rows = base.execute(
                    _LEARNT,
                    (*_place(setting), NEWEST),
                ).fetchall()
        return learnt([one for one in map(_read, rows) if one is not None])

    def remember(self, key: str, path: tuple[str, ...]) -> None:
        """Record which strategies made a job fit."""
        with self._open() as base:
            if base is not None:
                base.execute(
                    "INSERT OR REPLACE INTO fits (key, path) VALUES (?, ?)", (key, json.dumps(path))
                )

    def recall(self, key: str) -> tuple[str, ...] | None:
        """Return the strategies with which the same job fit before."""
        row = None
        with self._open() as base:
            if base is not None:
                row = base.execute("SELECT path FROM fits WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return tuple(str(name) for name in json.loads(row[0]))
        except (TypeError, ValueError) as error:
            self.lost = f"an entry of the history database {self.path} is not used: {error}"
            return None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """Open for one use and commit; None where the file cannot be used."""
        base: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(self.path, timeout=PATIENCE_S)
            _prepare(base)
        except (OSError, sqlite3.Error, _OtherLayout) as error:
            self.lost = f"the history database {self.path} is not used: {error}"
            if base is not None:
                base.close()
            yield None
            return
        try:
            yield base
            base.commit()
        except sqlite3.Error as error:
            self.lost = f"the history database {self.path} is not used: {error}"
        finally:
            base.close()


class _OtherLayout(Exception):  # noqa: N818  caught in this module
    """The file was written by another version."""


def record_run(record: RunRecord) -> str | None:
    """Record what a run has measured and which strategies made it fit; return why it failed, if so.

    An interrupted run is recorded once it has been resumed and has ended.
    """
    lessons = record.lessons
    if lessons is None or record.status is Status.INTERRUPTED:
        return None
    index = FitIndex(Path(lessons.index))
    for attempt in record.attempts:
        measured = _measured(attempt, record.predicted_for(attempt.spec.plan))
        if lessons.device is not None and record.job is not None and measured is not None:
            setting = HistoryKey(
                device=lessons.device,
                versions=lessons.versions,
                framework=record.job.framework,
                model=lessons.model,
            )
            index.add_measurement(setting, measured)
    if record.status is Status.FIT:
        index.remember(lessons.key, next_path(record))
    return index.lost


def _measured(attempt: Attempt, predicted: Predicted | None) -> Measured | None:
    """Compare an attempt that reached a step with what was predicted for its plan."""
    allocated, reserved = attempt.device_peak_bytes, attempt.reserved_peak_bytes
    if predicted is None or not allocated or not reserved or attempt.steps_done < 1:
        return None
    if attempt.splits is not None:  # its batches never went through whole
        return None
    resumed = attempt.first_step > 0  # then the optimizer's state was loaded too
    return Measured(
        terms=_uncorrected(predicted),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        loaded_bytes=None if resumed else attempt.loaded_bytes,
        context_bytes=attempt.context_bytes,
    )


def _uncorrected(predicted: Predicted) -> dict[Term, int]:
    """Undo the correction: recorded ratios refer to uncorrected predictions."""
    sizes, ratios = predicted.terms, predicted.corrected_by
    return {
        term: int(sizes[term.value] / ratios.get(term.value, 1))
        for term in Term
        if term.value in sizes
    }


def _read(row: _Row) -> Measured | None:
    """Read a row of the table; None if this is none that was written here."""
    terms, allocated, reserved, loaded, context = row
    try:
        return Measured(
            terms={Term(name): int(size) for name, size in json.loads(terms).items()},
            allocated_bytes=int(allocated),
            reserved_bytes=int(reserved),
            loaded_bytes=loaded,
            context_bytes=context,
        )
    except (AttributeError, TypeError, ValueError):
        return None


def _prepare(base: sqlite3.Connection) -> None:
    base.execute("PRAGMA journal_mode=WAL")
    (version,) = base.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise _OtherLayout(f"it has layout {version}, this is {VERSION}")
    if version == 1:
        base.execute("DROP TABLE measured")
    base.executescript(_TABLES)
    base.execute(f"PRAGMA user_version={VERSION}")


def _place(setting: HistoryKey) -> tuple[str, str, str]:
    return setting.device, json.dumps(dict(setting.versions), sort_keys=True), setting.framework
