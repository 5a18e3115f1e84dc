"""The run folder, whose file names only this module knows.

oomguard-runs/<name>/
events.jsonl          append-only, fsynced, secrets masked; everything else can be rebuilt from it
job.json              the job with its secrets, if it has any; only `oomguard resume` reads it
attempts/001/         the config as launched, command.json, log.txt, memory.jsonl, verdict.json
final/                the config that fits, command.txt
fit-report.json
.lock .reserve        who holds the folder; disk space reserved for the outcome
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from oomguard import present
from oomguard.errors import RunFolderError, Where
from oomguard.job.training_job import Job
from oomguard.machine.atomic_write import write_text
from oomguard.redact import redact_document
from oomguard.run.event_log import History, parse_history
from oomguard.run.events import Event, Progress, RunStarted
from oomguard.run.redaction import mask_event
from oomguard.units import MIB, show_bytes

EVENTS, REPORT = "events.jsonl", "fit-report.json"
#: Free disk space that a run needs to begin.
ROOM_BYTES = 64 * MIB
FREE_SPACE = "Free disk space or fix the permissions."
#: Disk space reserved for the outcome: the job's own log may fill the disk.
RESERVE_BYTES = 4 * MIB
#: How much may wait in memory while the disk is full; beyond it, progress is not recorded.
MOST_WAITING_BYTES = 4 * MIB


class RunFolder:
    """The files of one run; only one supervisor holds it at a time.

    `lost` says why the newest events are not on the disk, None if they are; `missed` which results
    could not be written, and why.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.gone = False
        self._events = _private(path / EVENTS, os.O_APPEND)
        self._size_bytes = os.fstat(self._events).st_size
        self._waiting = bytearray()
        with open(_private(path / ".reserve", os.O_TRUNC), "wb") as reserve:
            reserve.write(b"\0" * RESERVE_BYTES)
        self.lost: OSError | None = None
        self.missed: dict[str, str] = {}

    @classmethod
    def create(cls, base: Path, name: str) -> RunFolder:
        """Create and lock the folder of a new run.

        Raises:
            RunFolderError: if it is locked, holds a run, is not writable or the disk is full.
        """
        path = base.absolute() / name
        try:
            for given in (base, path):
                _check_no_link(given)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            _check_room(path)
            lock = _hold(path)
            if present.exists(path / EVENTS):
                lock.release()
                raise RunFolderError(
                    "the folder already holds a run",
                    where=Where(file=str(path)),
                    next_step=f"Resume it: oomguard resume {path}, or choose another --name.",
                )
            return cls(path, lock)
        except OSError as error:
            raise _cannot_write(path, error, "Choose another folder with --runs DIR.") from error

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, History]:
        """Lock the folder of an existing run and read its events.

        An incomplete last event, which a crash leaves, is cut off.

        Raises:
            RunFolderError: if it holds no run, is locked, damaged or not writable.
        """
        path = path.absolute()
        events = path / EVENTS
        if not present.is_file(events):
            raise no_run(path)
        try:
            lock = _hold(path)
            try:
                with events.open("rb") as lines:
                    history = _with_secrets(parse_history(lines, str(events)), path)
                os.truncate(events, history.kept_bytes)
                return cls(path, lock), history
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise _cannot_write(path, error, FREE_SPACE) from error

    def append(self, event: Event) -> None:
        """Append an event and fsync it; while the disk is full, it waits in memory."""
        masked = mask_event(event)
        if masked.get("masked"):
            self._keep_job(event)
        if len(self._waiting) < MOST_WAITING_BYTES or not isinstance(event, Progress):
            self._waiting += msgspec.json.encode(masked) + b"\n"
        self._write_waiting()

    def follow(self) -> str | None:
        """Return what has happened to the folder since the last call, None if it is in its place.

        A folder that was moved is used where it is now (Linux); one that was deleted is not made
        again, as its place may be somebody else's by now.
        """
        if self.gone or self._is_at(self.path):
            return None
        with suppress(OSError):
            now = Path(f"/proc/self/fd/{self._folder}").readlink()
            if self._is_at(now):
                before, self.path = self.path, now
                return f"the run folder {before} was moved to {now}, where the run is recorded"
        self.gone = True
        return f"the run folder {self.path} was deleted: the job goes on, but nothing is recorded"

    def _is_at(self, path: Path) -> bool:
        try:
            return os.path.samestat(path.lstat(), os.fstat(self._folder))
        except OSError:
            return False

    def check(self) -> None:
        """Raise FileNotFoundError if the folder was deleted."""
        self.follow()
        if self.gone:
            raise FileNotFoundError(errno.ENOENT, "the run folder was deleted", str(self.path))

    def keep(self, path: Path, document: object) -> None:
        """Write a JSON file that can be rebuilt from the events; ignore a full disk."""
        with suppress(OSError):
            write_json(path, document)

    def miss(self, what: str, error: OSError) -> None:
        """Note a result that could not be written."""
        where = f" ({error.filename})" if error.filename else ""
        self.missed[what] = f"{error.strerror or error}{where}"

    def attempt(self, number: int) -> Path:
        """Return the folder of an attempt; create it if needed.

        Raises:
            RunFolderError: if it cannot be created.
        """
        folder = self.path
        try:
            self.check()
            folder = self.path / "attempts" / f"{number:03d}"
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            step = f"Free disk space or fix the permissions, then: oomguard resume {self.path}"
            raise _cannot_write(folder, error, step) from error
        return folder

    def output(self, number: int) -> Path:
        """Return the folder for what a probe writes."""
        return self.attempt(number) / "output"

    def forget_output(self, number: int) -> None:
        """Delete what a probe has written."""
        shutil.rmtree(self.output(number), ignore_errors=True)

    def final(self) -> Path:
        """Return the folder of the final config; create it if needed."""
        self.check()
        folder = Path(final_folder(str(self.path)))
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def report(self) -> Path:
        """The path of the fit-report."""
        return self.path / REPORT

    def release(self) -> None:
        """Release the reserved disk space, for the outcome."""
        with suppress(OSError):
            (self.path / ".reserve").unlink(missing_ok=True)
        self._write_waiting()

    def close(self) -> None:
        """Release and unlock the folder."""
        self.release()
        os.close(self._events)
        os.close(self._folder)
        self._lock.release()

    def _write_waiting(self) -> None:
        """Write all waiting events or none: part of one would corrupt the next."""
        try:
            rest = memoryview(bytes(self._waiting))
            while rest:
                rest = rest[os.write(self._events, rest) :]
            os.fsync(self._events)
        except OSError as error:
            self.lost = error
            with suppress(OSError):
                os.ftruncate(self._events, self._size_bytes)
            return
        self._size_bytes += len(self._waiting)
        self._waiting.clear()
        self.lost = None

    def _keep_job(self, event: Event) -> None:
        if not isinstance(event, RunStarted):
            return
        try:
            _write_json(self.path / "job.json", event.job)
        except OSError as error:
            raise _cannot_write(self.path, error, FREE_SPACE) from error


def _with_secrets(history: History, path: Path) -> History:
    """Replace the masked job of the first event by the job as requested."""
    first, *others = history.events
    if not isinstance(first, RunStarted) or not first.masked:
        return history
    try:
        job = msgspec.json.decode((path / "job.json").read_bytes(), type=Job)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise RunFolderError(
            "the secrets of the job are missing: job.json is gone or damaged",
            where=Where(file=str(path / "job.json")),
            next_step="Launch the job again.",
        ) from error
    return replace(history, events=(replace(first, job=job), *others))


def final_folder(run: str) -> str:
    """Return where the final config of a run is."""
    return posixpath.join(run, "final")


def no_run(folder: Path) -> RunFolderError:
    """Return the error for a folder that holds no run, or in which one may not look for it."""
    if present.is_hidden(folder / EVENTS):
        return RunFolderError(
            "cannot read this folder: Permission denied",
            where=Where(file=str(folder)),
            next_step="Ask the owner of the run, or fix the permissions.",
        )
    return RunFolderError(
        "there is no run in this folder",
        where=Where(file=str(folder)),
        next_step="Pass the folder that `oomguard launch` printed (with events.jsonl); "
        "`oomguard runs` lists those under oomguard-runs.",
    )


def _check_no_link(folder: Path) -> None:
    if folder.is_symlink():
        raise RunFolderError(
            "it is a symbolic link, which is not followed",
            where=Where(file=str(folder)),
            next_step=f"Name the folder itself: {folder.resolve()}.",
        )


def _private(path: Path, flags: int = 0) -> int:
    """Open a file that only its owner can read, not through a link; return the descriptor."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def write_json(path: Path, document: object) -> None:
    """Write a value as indented JSON, secrets masked."""
    plain = msgspec.to_builtins(document, order="deterministic")
    _write_json(path, redact_document(plain))


def _write_json(path: Path, document: object) -> None:
    encoded = msgspec.json.encode(document, order="deterministic")
    write_text(path, msgspec.json.format(encoded, indent=2).decode() + "\n")


def append_json(path: Path, document: Mapping[str, object]) -> None:
    """Append a line of JSON to a file that nothing depends on.

    Ignore a full disk, and fields that nobody knows and JSON cannot hold.
    """
    unencodable = (OverflowError, RecursionError, UnicodeError)
    with suppress(OSError, *unencodable), open(_private(path, os.O_APPEND), "ab") as lines:
        lines.write(msgspec.json.encode(redact_document(document)) + b"\n")


def _check_room(path: Path) -> None:
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < ROOM_BYTES:
        raise RunFolderError(
            f"only {show_bytes(free_bytes)} free on disk, a run needs {show_bytes(ROOM_BYTES)}",
            where=Where(file=str(path)),
            next_step="Free disk space, or choose another folder with --runs DIR.",
        )


def _cannot_write(path: Path, error: OSError, next_step: str) -> RunFolderError:
    return RunFolderError(
        f"cannot write to the run folder: {error.strerror or error}",
        where=Where(file=str(path)),
        next_step=next_step,
    )


def _hold(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            "the run folder is locked by another oomguard",
            where=Where(file=str(path)),
            next_step="Wait for that run, stop it, or choose another --name.",
        ) from error
    return lock
