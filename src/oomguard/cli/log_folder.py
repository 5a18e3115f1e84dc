"""A folder with the logs of a job's ranks, read as one story with one root."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG

from oomguard.cli.compressed import BEGINNINGS
from oomguard.errors import LogError, Where
from oomguard.evidence.judge import EVIDENCE_AT_MOST
from oomguard.evidence.verdict import Confidence, Finding, Kind, Verdict

MOST_FILES = 4096
_HEAD_BYTES = 1 << 12
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
_RANK = re.compile(r"(?i)(?:rank|worker|proc|task)[-_.]?(\d{1,6})")
#: Certainty that a log holds the root: a failure of its own before those that follow from it.
_WEIGHTS = {Kind.INTERRUPTED: 3, Kind.UNKNOWN: 1, Kind.OK: 0}
_SURE = {Confidence.HIGH: 0.2, Confidence.MEDIUM: 0.1, Confidence.LOW: 0.0}


@dataclass(frozen=True, slots=True)
class Story:
    """The verdict on all logs, and the log that each piece of its evidence is from."""

    verdict: Verdict
    files: tuple[str, ...]


def judge_folder(folder: Path, judge_file: Callable[[Path], Verdict]) -> Story:
    """Return the verdict of the log that holds the root, with the others' roots as evidence.

    Raises:
        LogError: if there is no log in the folder, or too many.
    """
    logs = (path for path in _files_in(folder) if _may_be_log(path))
    paths = sorted(islice(logs, MOST_FILES + 1))
    if not 0 < len(paths) <= MOST_FILES:
        found = "no log in it" if not paths else f"more than {MOST_FILES} files in it"
        raise LogError(f"the folder has {found}", where=Where(file=str(folder)))
    judged = [(path, _with_rank(judge_file(path), path, folder)) for path in paths]
    chosen, verdict = max(judged, key=lambda row: _weight(row[1]))
    rows = [(finding, chosen) for finding in verdict.evidence]
    rows += [
        (other.evidence[0], path)
        for path, other in judged
        if path != chosen and other.evidence and other.kind is not Kind.OK
    ]
    kept = rows[:EVIDENCE_AT_MOST]
    names = tuple(path.relative_to(folder).as_posix() for _, path in kept)
    return Story(replace(verdict, evidence=tuple(finding for finding, _ in kept)), names)


def _may_be_log(path: Path) -> bool:
    """Return whether a file may hold what a job printed: not weights, an archive of them, an index.

    UTF-16 has a NUL in each second byte, and compressed logs begin with their own marks.
    """
    if path.name.startswith("."):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True  # the reader will say why it cannot be read
    return (
        head.startswith((*_UTF_16, *BEGINNINGS)) or b"\0" not in head or path.suffix in _COMPRESSED
    )


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the regular files of a folder and of those in it, as far as they may be read."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with suppress(OSError):
                if S_ISREG(path.lstat().st_mode):
                    yield path


def _weight(verdict: Verdict) -> float:
    if verdict.kind.is_memory:
        base = 4 if verdict.confidence is not Confidence.LOW else 2.5
    elif verdict.kind is Kind.NOT_OOM:
        base = 2.0
    else:
        base = _WEIGHTS[verdict.kind]
    return base + _SURE[verdict.confidence]


def _with_rank(verdict: Verdict, path: Path, folder: Path) -> Verdict:
    """Return a verdict with the rank that its file's name tells, where the text tells none."""
    inside = path.relative_to(folder)
    named = _RANK.search(inside.as_posix())
    number = next((part for part in reversed(inside.parent.parts) if part.isdecimal()), None)
    rank = int(named[1]) if named else int(number) if number else None
    if rank is None or verdict.rank is not None:
        return verdict
    return replace(
        verdict, rank=rank, evidence=tuple(_ranked(finding, rank) for finding in verdict.evidence)
    )


def _ranked(finding: Finding, rank: int) -> Finding:
    return finding if finding.rank is not None else replace(finding, rank=rank)
