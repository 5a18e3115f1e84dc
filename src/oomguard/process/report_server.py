"""Receive the monitor's reports: on a Unix socket, and from the files it falls back to."""

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

from oomguard import present
from oomguard.process.messages import Emit, Lines, receive
from oomguard.redact import Known

_CHUNK_BYTES = 64 << 10
_SUN_PATH_BYTES = 107  # of sockaddr_un on Linux, without the final NUL
_BACKLOG = 1024  # all ranks of a node connect at once
_PAUSE_S = 0.05
_FILES_S = 0.5
_CLOSE_S = 1.0
_PREFIX = "oomguard-"
#: Beside the buffer: path of the socket, so that `resume` can remove it after a killed oomguard.
SOCKET_FILE = "socket.txt"


@dataclass(slots=True)
class _Tail:
    """Read position in a file of the buffer."""

    read_bytes: int = 0
    lines: Lines = field(default_factory=Lines)


class ReportServer:
    """Serves any number of connections of this user in one thread, until closed.

    It also follows the files in `buffer`: a process that could not send a line in time writes all
    later ones there, and one of them may be its OOM. `refused` counts lines that break the
    protocol. `known` are secrets to mask in what is reported.
    """

    def __init__(self, emit: Emit, *, buffer: Path, known: Known = frozenset()) -> None:
        self._known = known
        self._emit, self._uid, self.refused = emit, os.geteuid(), 0
        self.buffer, self._files = buffer, dict[Path, _Tail]()
        self.path = _fresh_folder() / "s"
        self._note = buffer.with_name(SOCKET_FILE)
        try:
            self._note.write_text(os.fspath(self.path))
        except OSError:  # a full disk: the socket stays behind if this process is killed
            with suppress(OSError):
                self._note.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(_BACKLOG)
        self._ring, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._closing, self._flushing, self._flushed = (threading.Event() for _ in range(3))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._bell, selectors.EVENT_READ, self._heard)
        self._thread = threading.Thread(target=self._serve, name="oomguard-reports", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> None:
        """Wait until every report sent or written so far is emitted, at most `timeout_s`."""
        self._flushed.clear()
        self._flushing.set()
        self._wake()
        self._flushed.wait(timeout_s)

    def close(self) -> None:
        """End the thread and remove the socket with its folder."""
        self._closing.set()
        self._wake()
        self._thread.join(_CLOSE_S)
        _remove(self.path, self._note)

    def _serve(self) -> None:
        files_at = time.monotonic() + _FILES_S
        while not self._closing.is_set():
            ready = self._selector.select(0 if self._flushing.is_set() else _FILES_S)
            for key, _ in ready:
                key.data()
            drained = not ready and self._flushing.is_set()
            if drained or time.monotonic() >= files_at:
                self._read_files()
                files_at = time.monotonic() + _FILES_S
            if drained:
                self._flushing.clear()
                self._flushed.set()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._ring.close()
        self._selector.close()

    def _read_files(self) -> None:
        for path in sorted(self.buffer.glob("*.jsonl")):
            tail = self._files.setdefault(path, _Tail())
            with suppress(OSError):
                if not present.is_file(path):  # a FIFO would block
                    continue
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
            report = receive(line, self._known)
            if report is None:
                self.refused += 1
            else:
                self._emit(report)
        self.refused += lines.dropped - dropped


def sweep(folder: Path) -> None:
    """Remove the sockets that a killed oomguard left behind.

    A path in a note is removed only if it is a socket of this user with the expected name; if
    somebody else has removed it, its folder and its note go too.
    """
    for note in folder.glob(f"attempts/*/{SOCKET_FILE}"):
        with suppress(OSError, ValueError):
            path = Path(note.read_text())
            ours = path.name == "s" and path.parent.name.startswith(_PREFIX)
            if ours and (not os.path.lexists(path) or _is_own_socket(path)):
                _remove(path, note)


def _is_own_socket(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid()


def _remove(socket_path: Path, note: Path) -> None:
    """Remove a socket, its folder and its note."""
    with suppress(OSError):
        socket_path.unlink()
    with suppress(OSError):
        socket_path.parent.rmdir()
    with suppress(OSError):
        note.unlink()


def _fresh_folder() -> Path:
    """Create a private folder in which a socket's path is short enough."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(folder / "s")) <= _SUN_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))


def _user(connection: socket.socket) -> int | None:
    """Return the uid of a peer; None outside Linux, where the folder's mode protects the socket."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", raw)[1]
    return uid
