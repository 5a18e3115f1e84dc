"""Send lines to the socket, or to a file if that fails, or drop them if both do."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

#: Longest time that the job waits for oomguard, in seconds.
TIMEOUT_S = 0.2
_CONNECT_PAUSE_S = 0.01


class Channel:
    """Sends lines of this process; opened by the first line, thread-safe."""

    def __init__(self, socket_path: str | None, buffer_folder: str | None) -> None:
        self._socket_path, self._buffer_folder = socket_path, buffer_folder
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None

    def send(self, line: bytes) -> bool:
        """Send one line that ends with a newline; return whether the socket or the file took it."""
        with self._lock:
            return self._to_socket(line) or self._to_file(line)

    def forked(self) -> None:
        """Leave the parent's connection alone in a forked child; open another when needed."""
        self._lock = threading.RLock()  # a thread of the parent may have held it
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
            # The job may have reset SIGPIPE to its default, which would kill it here.
            self._socket.sendall(line, socket.MSG_NOSIGNAL)
        except OSError as error:
            # A timeout too: part of the line may have been sent, so nothing may follow it.
            self._give_up_socket(is_ours=error.errno not in {errno.EBADF, errno.ENOTSOCK})
            return False
        return True

    def _give_up_socket(self, *, is_ours: bool) -> None:
        """Drop the socket; if the job closed its descriptor, the number may be another file's."""
        self._socket_path = None
        if self._socket is not None:
            if is_ours:
                self._socket.close()
            else:
                self._socket.detach()
            self._socket = None

    def _to_file(self, line: bytes) -> bool:
        """Append to this process's file, opened each time: the job may close descriptors."""
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
    """Connect within TIMEOUT_S; retry while the backlog is full, raise OSError for all else."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(TIMEOUT_S)
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
