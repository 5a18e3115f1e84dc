"""The Unix socket on which the job's own processes report, and the files they fall back to."""

from __future__ import annotations

import os
import selectors
import socket
import stat
import struct
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from oomguard.process.messages import Emit, Lines, Report, parse

_CHUNK_BYTES = 64 << 10
_SUN_PATH_BYTES = 107  # of sockaddr_un on Linux, without the closing NUL
_BACKLOG = 1024  # all ranks of a node connect at once
_PAUSE_S = 0.05
_FILES_S = 0.5
_CLOSE_S = 1.0
_PREFIX = "oomguard-"
#: Beside the buffer: where the socket is, for who cleans up after an oomguard that was killed.
SOCKET_FILE = "socket.txt"


@dataclass(slots=True)
class _Tail:
    """How far a file of the buffer has been read."""

    read_bytes: int = 0
    lines: Lines = field(default_factory=Lines)


class ReportServer:
    """Serves any number of connections of this user in one thread, until closed.

    It follows the files in `buffer` too: a process that could not get rid of a line in time
    writes there from then on, and may have to say that it is out of memory.

    `refused` counts the lines that do not keep the protocol.
    """

    def __init__(self, emit: Emit, *, buffer: Path) -> None:
        self._emit, self._uid, self.refused = emit, os.geteuid(), 0
        self.buffer, self._files = buffer, dict[Path, _Tail]()
        self.path = _fresh_folder() / "s"
        self._note = buffer.with_name(SOCKET_FILE)
        try:
            self._note.write_text(os.fspath(self.path))
        except OSError:  # a full disk: the folder is left behind if this one is killed
            with suppress(OSError):
                self._note.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(_BACKLOG)
        self._ring, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._closing, self._settle, self._settled = (threading.Event() for _ in range(3))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._bell, selectors.EVENT_READ, self._heard)
        self._thread = threading.Thread(target=self._serve, name="oomguard-reports", daemon=True)
        self._thread.start()

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was sent or written so far is emitted, at most `timeout_s`."""
        self._settled.clear()
        self._settle.set()
        self._wake()
        self._settled.wait(timeout_s)

    def close(self) -> None:
        """End the thread and remove the socket with its folder."""
        self._closing.set()
        self._wake()
        self._thread.join(_CLOSE_S)
        _remove(self.path, self._note)

    def _serve(self) -> None:
        files_at = time.monotonic() + _FILES_S
        while not self._closing.is_set():
            ready = self._selector.select(0 if self._settle.is_set() else _FILES_S)
            for key, _ in ready:
                key.data()
            settled = not ready and self._settle.is_set()
            if settled or time.monotonic() >= files_at:
                self._read_files()
                files_at = time.monotonic() + _FILES_S
            if settled:
                self._settle.clear()
                self._settled.set()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._ring.close()
        self._selector.close()

    def _read_files(self) -> None:
        for path in sorted(self.buffer.glob("*.jsonl")):
            tail = self._files.setdefault(path, _Tail())
            with suppress(OSError):
                self._read_file(path, tail)

    def _read_file(self, path: Path, tail: _Tail) -> None:
        if not path.is_file():  # a FIFO would block
            return
        with path.open("rb") as file:
            file.seek(tail.read_bytes)
            while chunk := file.read(_CHUNK_BYTES):
                tail.read_bytes += len(chunk)
                self._take(tail.lines, chunk)

    def _wake(self) -> None:
        with suppress(OSError):
            self._ring.send(b"\0")

    def _heard(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(_CHUNK_BYTES)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the caller waits in the backlog
            self._closing.wait(_PAUSE_S)
            return
        if _user(connection) not in (self._uid, None):
            connection.close()
            return
        connection.setblocking(False)
        act = partial(self._read, connection, Lines())
        self._selector.register(connection, selectors.EVENT_READ, act)

    def _read(self, connection: socket.socket, lines: Lines) -> None:
        try:
            data = connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._take(lines, data or b"\n")
        if not data:
            self._selector.unregister(connection)
            connection.close()

    def _take(self, lines: Lines, data: bytes) -> None:
        dropped = lines.dropped
        for line in lines.feed(data):
            report = parse(line)
            if report is None:
                self.refused += 1
            else:
                self._emit(Report(report=report, line=line))
        self.refused += lines.dropped - dropped


def sweep(folder: Path) -> None:
    """Remove the sockets of a run's attempts, whose oomguard is gone.

    What a note names is removed only where it is the socket of this user that it should be.
    """
    for note in folder.glob(f"attempts/*/{SOCKET_FILE}"):
        with suppress(OSError, ValueError):
            path = Path(note.read_text())
            info = path.lstat()
            own = stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid()
            if own and path.name == "s" and path.parent.name.startswith(_PREFIX):
                _remove(path, note)


def _remove(socket_path: Path, note: Path) -> None:
    """Remove a socket with its folder, and what says where it is."""
    with suppress(OSError):
        socket_path.unlink()
    with suppress(OSError):
        socket_path.parent.rmdir()
    with suppress(OSError):
        note.unlink()


def _fresh_folder() -> Path:
    """Make a folder for this user alone in which a socket's path is short enough."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(folder / "s")) <= _SUN_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))


def _user(connection: socket.socket) -> int | None:
    """Ask the kernel who connected; None where it is not Linux, and the folder's mode has to do."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", raw)[1]
    return uid
