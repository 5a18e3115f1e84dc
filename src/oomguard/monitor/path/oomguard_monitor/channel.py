"""Where lines go: the socket; where it is gone, a file; where neither works, nowhere."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

#: The job never waits longer than this for the supervisor, in seconds.
PATIENCE_S = 0.2
_CONNECT_PAUSE_S = 0.01


class Channel:
    """Sends lines of this process; opened by the first line, safe between threads."""

    def __init__(self, socket_path: str | None, buffer_folder: str | None) -> None:
        self._socket_path, self._buffer_folder = socket_path, buffer_folder
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None

    def send(self, line: bytes) -> bool:
        """Send one line that ends with a newline; say whether anything took it."""
        with self._lock:
            return self._to_socket(line) or self._to_file(line)

    def forked(self) -> None:
        """In a forked child: leave the parent's connection alone, open another when needed."""
        self._lock = threading.RLock()  # a thread that is not here may have held it
        if self._socket is not None:
            self._socket.close()  # closes this process's descriptor; no shutdown
        self._socket = None

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            self.forked()

    def _to_socket(self, line: bytes) -> bool:
        try:
            if self._socket is None and self._socket_path is not None:
                self._socket = _connect(self._socket_path)
            if self._socket is None:
                return False
            # The job may have given SIGPIPE its default back, which would end it here.
            self._socket.sendall(line, socket.MSG_NOSIGNAL)
        except OSError as error:
            # Also a timeout: part of the line may be out, so nothing may follow it there.
            self._give_up_socket(is_ours=error.errno not in {errno.EBADF, errno.ENOTSOCK})
            return False
        return True

    def _give_up_socket(self, *, is_ours: bool) -> None:
        """Forget the socket; where the job closed its descriptor, the number is another file's."""
        self._socket_path = None
        if self._socket is not None:
            if is_ours:
                self._socket.close()
            else:
                self._socket.detach()
            self._socket = None

    def _to_file(self, line: bytes) -> bool:
        """Append to this process's file; opened each time, as the job may close descriptors."""
        if self._buffer_folder is None:
            return False
        try:
            name = os.path.join(self._buffer_folder, f"{os.getpid()}.jsonl")  # noqa: PTH118 - no pathlib
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                return os.write(descriptor, line) == len(line)
            finally:
                os.close(descriptor)
        except OSError:
            self._buffer_folder = None
            return False


def _connect(path: str) -> socket.socket:
    """Connect within the patience; a full backlog is tried again, all else is an OSError."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(PATIENCE_S)
            stream.connect(path)
        except BlockingIOError:
            stream.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(_CONNECT_PAUSE_S)
        except OSError:
            stream.close()
            raise
        else:
            return stream
