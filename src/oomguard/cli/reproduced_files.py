"""Where a run is reproduced: the job's folder, and the files of its final config in it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oomguard import present
from oomguard.errors import UsageError, Where
from oomguard.machine.atomic_write import write_text
from oomguard.redact import redact_config
from oomguard.run.report import FitReport
from oomguard.run.reproduction import JOB, Reproduction

#: Folder in the job's folder for the configs that are recreated.
REPRODUCED = "oomguard-reproduced"
#: How far above a report its job's folder is looked for: oomguard-runs/NAME/fit-report.json.
_LEVELS = 5


def needed_files(report: FitReport, found: Reproduction) -> tuple[str, ...]:
    """Return what has to be in the job's folder: its script, and its data."""
    words = (word.removeprefix(f"{JOB}/") for word in found.argv)
    script = next((word for word in words if word.endswith(".py")), None)
    data = [one.path for one in report.data.files] if report.data else []
    every = dict.fromkeys([*([script] if script else []), *data])
    return tuple(path for path in every if not posixpath.isabs(path) and "{" not in path)


def missing_files(root: Path, needed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that are not in a folder."""
    return tuple(path for path in needed if not present.is_file(root / path))


def find_root(report: Path, needed: tuple[str, ...], given: Path | None) -> Path:
    """Return the job's folder: the one that was given, or the first that has all files.

    Raises:
        UsageError: if there is none.
    """
    if given is not None:
        if not present.is_folder(given):
            raise UsageError(
                "is not a folder",
                where=Where(file=str(given), key="--root"),
                next_step="Pass the folder that the job runs in.",
            )
        return given.absolute()
    candidates = [Path.cwd(), *report.absolute().parents[:_LEVELS]]
    for root in candidates:
        if not missing_files(root, needed):
            return root
    raise UsageError(
        f"the job's files are not found here, nor above the report: {', '.join(needed)}",
        where=Where(key="--root"),
        next_step="Pass the folder that the job runs in: --root DIR.",
    )


def final_place(root: Path, report: FitReport) -> Path:
    """Return the folder for the final config of a run.

    Raises:
        UsageError: if the name of the run is not that of a folder.
    """
    if report.run in ("", ".", "..") or "/" in report.run or "\0" in report.run:
        raise UsageError(f"{report.run!r} is not the name of a run: the report was not written so")
    return root / REPRODUCED / report.run


def write_files(found: Reproduction, folder: Path) -> None:
    """Write the files of a final config; one that is there must be the same but for its secrets.

    Raises:
        UsageError: if a path leads out of the folder, one cannot be written, or another is there.
    """
    for file in found.files:
        path = Path(file.path)
        if not Path(os.path.normpath(path)).is_relative_to(folder):
            raise UsageError(
                "the report would write outside of the folder of its config",
                where=Where(file=str(path)),
                next_step="Do not use a report that somebody has changed so.",
            )
        try:
            if present.exists(path):
                _check_same(path, file.text)
                continue
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(path, file.text)
        except OSError as error:
            raise UsageError(
                f"cannot write the config: {error.strerror or error}", where=Where(file=str(path))
            ) from error


def _check_same(path: Path, recorded: str) -> None:
    if redact_config(path.read_text(encoding="utf-8", errors="surrogateescape")) != recorded:
        raise UsageError(
            "is there already, and is not the recorded config",
            where=Where(file=str(path)),
            next_step="Move it away, or pass another folder with --root.",
        )


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in another folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
