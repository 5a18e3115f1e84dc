"""Fingerprint training data: sizes, hashes within bounds, and counts of samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from oomguard import present
from oomguard.dataset.lengths import data_file, records_in
from oomguard.job.provenance import DataFile, DataFingerprint, LengthSummary
from oomguard.job.training_job import Lengths
from oomguard.units import MIB

#: Of a larger file half of this is hashed at its beginning and at its end.
MOST_OF_A_FILE_BYTES = 64 * MIB
#: After this much, further files are known by their sizes alone: a launch must not wait.
MOST_HASHED_BYTES = 256 * MIB
MOST_FILES = 200
#: A folder with more files than this is not listed whole.
MOST_LISTED = 20_000
_CHUNK_BYTES = MIB


def fingerprint(
    data: Sequence[str], cwd: Path, *, lengths: Lengths | None = None, seed: int | None = None
) -> DataFingerprint:
    """Return what identifies the data that a job names by path; other names are kept as such."""
    found, elsewhere = [], []
    for name in data:
        files = sorted(islice(_files(data_file(Path(name))), MOST_LISTED))
        found += files
        if not files:
            elsewhere.append(_shown(Path(name), cwd))
    found = list(dict.fromkeys(found))
    hashed, left_bytes = [], MOST_HASHED_BYTES
    for path in found[:MOST_FILES]:
        one = file_print(path, cwd, most_bytes=left_bytes)
        if one is not None:
            hashed.append(one)
            left_bytes -= one.hashed_bytes
    return DataFingerprint(
        files=tuple(hashed),
        left_out=len(found) - len(hashed),
        elsewhere=tuple(elsewhere),
        lengths=LengthSummary.of(lengths) if lengths else None,
        seed=seed,
    )


def file_print(path: Path, cwd: Path, *, most_bytes: int = MOST_HASHED_BYTES) -> DataFile | None:
    """Return what identifies a file; None if it cannot be read."""
    try:
        size_bytes = path.stat().st_size
        part_bytes = min(size_bytes, MOST_OF_A_FILE_BYTES)
        digest = _digest(path, size_bytes, part_bytes) if part_bytes <= most_bytes else None
    except OSError:
        return None
    return DataFile(
        path=_shown(path, cwd),
        size_bytes=size_bytes,
        sha256=digest,
        hashed_bytes=part_bytes if digest else 0,
        samples=_samples(path),
    )


def _digest(path: Path, size_bytes: int, part_bytes: int) -> str:
    digest = hashlib.sha256()
    parts = [(0, size_bytes)]
    if part_bytes < size_bytes:
        parts = [(0, part_bytes // 2), (size_bytes - part_bytes // 2, part_bytes // 2)]
    with path.open("rb") as file:
        for start, length in parts:
            file.seek(start)
            for at in range(0, length, _CHUNK_BYTES):
                digest.update(file.read(min(_CHUNK_BYTES, length - at)))
    return digest.hexdigest()


def _samples(path: Path) -> int | None:
    """Count the records of a JSON list or of JSON lines."""
    return len(records_in(path)) or None


def _files(path: Path) -> Iterator[Path]:
    if present.is_file(path):
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _shown(path: Path, cwd: Path) -> str:
    """Return a path relative to the job's folder where it lies in it."""
    normal = Path(os.path.normpath(path))
    return str(normal.relative_to(cwd)) if normal.is_relative_to(cwd) else str(normal)
