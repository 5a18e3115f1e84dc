"""What has to lie ready before an attempt starts: its files, its log, its environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from oomguard import monitor
from oomguard.errors import RunFolderError, Where
from oomguard.job.command import File
from oomguard.process.members import MARK

# glibc keeps freed heap; from this size on it gives freed tensors back, as a device would.
_MMAP_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def write_files(files: Iterable[File]) -> None:
    """Write each file beside its place and move it there, in order.

    Raises:
        RunFolderError: if one cannot be written.
    """
    for file in files:
        target = Path(file.path)
        beside = target.with_name(f".oomguard-{os.getpid()}.tmp")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(
                _private(beside), "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as out:
                out.write(file.text)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(target)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise _cannot_write(target, error) from error


def _private(path: Path) -> int:
    """Open a file that only its owner can read: configs may hold tokens."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, if it is not there yet.

    Raises:
        RunFolderError: if it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def open_log(log: Path) -> int:
    """Open the log to append to, unbuffered; return its descriptor.

    Raises:
        RunFolderError: if it cannot be opened.
    """
    make_folder(log.parent)
    try:
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_write(log, error) from error


def environment(asked: Mapping[str, str], *, mark: str, capped: bool) -> dict[str, str]:
    """Return oomguard's environment with what the command asks for, and the mark."""
    env = {name: value for name, value in os.environ.items() if name not in monitor.VARIABLES}
    if capped:
        env = _MMAP_THRESHOLD | env
    return {"PYTHONUNBUFFERED": "1"} | env | dict(asked) | {MARK: mark}


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot be written: {error.strerror or error}",
        where=Where(file=os.fspath(path)),
        next_step="Make room or give the rights, then go on with `oomguard resume`.",
    )
