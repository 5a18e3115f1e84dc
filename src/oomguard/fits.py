"""The index of fits: what was measured against what was predicted, and which rungs worked.

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
from statistics import median

import platformdirs

from oomguard.estimate.correct import Ratios, ratio
from oomguard.events import Predicted, Status
from oomguard.record import Attempt, RunRecord

#: A file of another layout is left alone.
VERSION = 1
#: Seconds to wait for another run that writes.
PATIENCE_S = 2.0
#: So many of the newest measurements say how far predictions are off.
NEWEST = 15
_TABLES = """
CREATE TABLE IF NOT EXISTS measured (
    id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP,
    device TEXT NOT NULL, versions TEXT NOT NULL, framework TEXT NOT NULL, model TEXT NOT NULL,
    worked REAL, slack REAL
);
CREATE INDEX IF NOT EXISTS measured_by ON measured (device, versions, framework);
CREATE TABLE IF NOT EXISTS fits (
    key TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, path TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a measurement holds: the GPU's name, the versions of what trains, the framework."""

    device: str
    versions: Mapping[str, str]
    framework: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Peaks of one attempt in bytes, as predicted and as measured.

    `counted_bytes` is the part of the predicted peak that is known exactly.
    """

    counted_bytes: int
    predicted_allocated_bytes: int
    predicted_reserved_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class FitIndex:
    """The index in one file; None of its methods raises, or fails a run."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(platformdirs.user_data_dir("oomguard")) / "fits.sqlite"
        self.lost: str | None = None

    def learn(self, setting: Setting, measured: Measured) -> None:
        """Keep how far a prediction was off."""
        counted = measured.counted_bytes
        worked = ratio(
            measured.allocated_bytes - counted, measured.predicted_allocated_bytes - counted
        )
        slack = ratio(
            measured.reserved_bytes - measured.allocated_bytes,
            measured.predicted_reserved_bytes - measured.predicted_allocated_bytes,
        )
        row = (*_place(setting), setting.model, worked, slack)
        with self._open() as base:
            if base is not None:
                base.execute(
                    "INSERT INTO measured (device, versions, framework, model, worked, slack) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    row,
                )

    def ratios(self, setting: Setting) -> Ratios:
        """Give the median of the newest measurements of this device, versions and framework."""
        rows: list[tuple[float | None, float | None]] = []
        with self._open() as base:
            if base is not None:
                rows = base.execute(
                    "SELECT worked, slack FROM measured WHERE device = ? AND versions = ? "
                    "AND framework = ? ORDER BY id DESC LIMIT ?",
                    (*_place(setting), NEWEST),
                ).fetchall()
        worked = [row[0] for row in rows if isinstance(row[0], float)]
        slack = [row[1] for row in rows if isinstance(row[1], float)]
        return Ratios(
            worked=median(worked) if worked else 1.0,
            slack=median(slack) if slack else 1.0,
            runs=len(rows),
        )

    def remember(self, key: str, path: tuple[str, ...]) -> None:
        """Keep which rungs led a job to its end."""
        with self._open() as base:
            if base is not None:
                base.execute(
                    "INSERT OR REPLACE INTO fits (key, path) VALUES (?, ?)", (key, json.dumps(path))
                )

    def recall(self, key: str) -> tuple[str, ...] | None:
        """Give the rungs that led the same job to its end before."""
        row = None
        with self._open() as base:
            if base is not None:
                row = base.execute("SELECT path FROM fits WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return tuple(str(name) for name in json.loads(row[0]))
        except (TypeError, ValueError) as error:
            self.lost = f"an entry of the index of fits {self.path} is not used: {error}"
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
            self.lost = f"the index of fits {self.path} is not used: {error}"
            if base is not None:
                base.close()
            yield None
            return
        try:
            yield base
            base.commit()
        except sqlite3.Error as error:
            self.lost = f"the index of fits {self.path} is not used: {error}"
        finally:
            base.close()


class _OtherLayout(Exception):  # noqa: N818  caught in this module
    """The file was written by another version."""


def learn(record: RunRecord) -> str | None:
    """Keep what a run has measured, and the rungs that led to a fit; give why it was not kept.

    A run that was interrupted teaches when it has been resumed to its end.
    """
    lessons = record.lessons
    if lessons is None or record.status is Status.INTERRUPTED:
        return None
    index = FitIndex(Path(lessons.index))
    for attempt in record.attempts:
        measured = _measured(attempt, record.predicted_for(attempt.plan))
        if lessons.device is not None and record.job is not None and measured is not None:
            setting = Setting(
                device=lessons.device,
                versions=lessons.versions,
                framework=record.job.framework,
                model=lessons.model,
            )
            index.learn(setting, measured)
    if record.status is Status.FIT:
        index.remember(lessons.key, record.last.path)
    return index.lost


def _measured(attempt: Attempt, predicted: Predicted | None) -> Measured | None:
    """Compare an attempt that reached a step with what was predicted for its plan."""
    allocated, reserved = attempt.device_peak_bytes, attempt.reserved_peak_bytes
    if predicted is None or not allocated or not reserved or attempt.steps_done < 1:
        return None
    return Measured(
        counted_bytes=predicted.counted_bytes,
        predicted_allocated_bytes=predicted.allocated_bytes,
        predicted_reserved_bytes=predicted.reserved_bytes,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
    )


def _prepare(base: sqlite3.Connection) -> None:
    base.execute("PRAGMA journal_mode=WAL")
    (version,) = base.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise _OtherLayout(f"it has layout {version}, this is {VERSION}")
    base.executescript(_TABLES)
    base.execute(f"PRAGMA user_version={VERSION}")


def _place(setting: Setting) -> tuple[str, str, str]:
    return setting.device, json.dumps(dict(setting.versions), sort_keys=True), setting.framework
