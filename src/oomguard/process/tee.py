"""Copy the job's output to the log and to the supervisor: unbuffered, and secrets masked."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import threading
from contextlib import suppress

from oomguard.process.messages import Emit, Output
from oomguard.process.output_mask import OutputMask
from oomguard.redact import Known

_CHUNK_BYTES = 64 << 10
_CLOSE_S = 1.0


class Tee:
    """One thread that reads `pipe_fd` to EOF or until closed; it owns both descriptors.

    `emit` may block, which blocks the job's own writing: memory stays bounded. If the log cannot be
    written, `log_error` is the reason, and later chunks go to `emit` only. `known` are secrets to
    mask, beside those that are found.
    """

    def __init__(
        self, *, pipe_fd: int, log_fd: int, emit: Emit, known: Known = frozenset()
    ) -> None:
        self._pipe, self._log, self._emit = pipe_fd, log_fd, emit
        self.log_error: str | None = None
        self._mask = OutputMask(known)
        self._wake_r, self._wake_w = os.pipe()
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._taken_bytes = self._done_bytes = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="oomguard-tee", daemon=True)
        self._thread.start()

    def drain(self, *, linger_s: float, limit_s: float) -> None:
        """Wait for EOF, or until all output so far is emitted.

        A process that outlives the direct child may keep the pipe open: after `linger_s` only what
        is in the pipe by then is waited for, at most `limit_s` (`emit` may block).
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended, linger_s)
        with self._reading:
            printed_bytes = self._taken_bytes + self._waiting_bytes()
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._done_bytes >= printed_bytes, limit_s
            )

    def close(self) -> None:
        """End the thread, even if a process still has the pipe open."""
        with suppress(BrokenPipeError):  # it has ended
            os.write(self._wake_w, b"\0")
        self._thread.join(_CLOSE_S)
        os.close(self._wake_w)

    def _waiting_bytes(self) -> int:
        if self._ended:
            return 0
        size = array.array("i", [0])
        fcntl.ioctl(self._pipe, termios.FIONREAD, size)
        return size[0]

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._wake_r, select.POLLIN)
        while self._wake_r not in (ready := [fd for fd, _ in poll.poll()]) and ready:
            with self._reading:
                data = os.read(self._pipe, _CHUNK_BYTES)
                self._taken_bytes += len(data)
            if not data:
                break
            self._pass_on(self._mask.feed(data), taken=len(data))
        self._pass_on(self._mask.close(), taken=0)
        with self._reading, self._changed:
            self._ended = True
            self._changed.notify_all()
            for descriptor in (self._pipe, self._log, self._wake_r):
                os.close(descriptor)

    def _pass_on(self, data: bytes, *, taken: int) -> None:
        if self.log_error is None:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(self._log, rest) :]
            except OSError as error:
                self.log_error = error.strerror or str(error)
        if data:
            self._emit(Output(data=data))
        with self._changed:
            self._done_bytes += taken
            self._changed.notify_all()
