"""The run folder: the one module that owns its file names.

oomguard-runs/<name>/
events.jsonl          append-only, fsynced; all else can be rebuilt from it
attempts/001/         the config as launched, command.json, log.txt, memory.jsonl, verdict.json
final/                the config that fits, command.txt
fit-report.json
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from oomguard.errors import RunFolderError, Where
from oomguard.record import Event, event_from_json, event_to_json
from oomguard.units import MIB, show_bytes

#: A run folder holds text; with less room than this on the disk it could not be finished.
ROOM_BYTES = 64 * MIB


class RunFolder:
    """The files of one run; only one supervisor holds it at a time."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._events = (path / "events.jsonl").open("ab", buffering=0)
        self.lost: OSError | None = None

    @classmethod
    def create(cls, base: Path, name: str) -> RunFolder:
        """Make the folder of a new run and take hold of it.

        Raises:
            RunFolderError: if it is in use, holds a run already, cannot be written, or no room.
        """
        path = base.absolute() / name
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_room(path)
            lock = _hold(path)
            if (path / "events.jsonl").exists():
                lock.release()
                raise RunFolderError(
                    "the folder holds a run already",
                    where=Where(file=str(path)),
                    next_step="Choose another --name, or remove the folder.",
                )
            return cls(path, lock)
        except OSError as error:
            raise RunFolderError(
                f"the run folder cannot be written: {error.strerror or error}",
                where=Where(file=str(path)),
                next_step="Choose another place with --runs DIR.",
            ) from error

    def append(self, event: Event) -> None:
        """Add an event and force it to the disk; a full disk is noted, and the run goes on."""
        try:
            self._events.write(msgspec.json.encode(event_to_json(event)) + b"\n")
            os.fsync(self._events.fileno())
        except OSError as error:
            self.lost = error

    def attempt(self, number: int) -> Path:
        """Give the folder of an attempt, made if it is not there."""
        folder = self.path / "attempts" / f"{number:03d}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def final(self) -> Path:
        """Give the folder of what fits, made if it is not there."""
        folder = self.path / "final"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    @property
    def report(self) -> Path:
        """Where the fit-report lies."""
        return self.path / "fit-report.json"

    def close(self) -> None:
        """Let go of the folder."""
        self._events.close()
        self._lock.release()


def read_events(path: Path) -> Iterator[Event]:
    """Read the events of a run; a last line that was cut off is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield event_from_json(msgspec.json.decode(line))


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, then put it there: a reader sees the old or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def write_json(path: Path, document: object) -> None:
    """Write a noun or a mapping as indented JSON."""
    encoded = msgspec.json.encode(document, order="deterministic")
    write_text(path, msgspec.json.format(encoded, indent=2).decode() + "\n")


def append_json(path: Path, document: Mapping[str, object]) -> None:
    """Add one line of JSON to a file that nothing depends on; a full disk is let pass."""
    with suppress(OSError), path.open("ab") as lines:
        lines.write(msgspec.json.encode(document) + b"\n")


def _check_room(path: Path) -> None:
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < ROOM_BYTES:
        raise RunFolderError(
            f"{show_bytes(free_bytes)} are left on this disk; a run needs {show_bytes(ROOM_BYTES)}",
            where=Where(file=str(path)),
            next_step="Make room, or choose another place with --runs DIR.",
        )


def _hold(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            "another oomguard is at work in this run folder",
            where=Where(file=str(path)),
            next_step="Wait for it, stop it, or choose another --name.",
        ) from error
    return lock
