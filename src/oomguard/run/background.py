"""Follow the processes that a command has left running in the background when it exited."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

#: Seconds without output, reports or use of the CPU after which what is left does not train.
IDLE_S = 120.0
#: Share of one CPU core below which a process counts as idle.
IDLE_SHARE = 0.01
POLL_S = 0.5


class Followed(Protocol):
    """What is asked of a running attempt."""

    @property
    def exit_codes(self) -> Mapping[int, int]:
        """Return the exit code of each process that outlived its parent and has exited."""
        ...

    def alive(self) -> tuple[int, ...]:
        """Return the pid of every process of the attempt that is still alive."""
        ...

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used."""
        ...


class Background:
    """Processes that may still train although the command that started them has exited with 0."""

    def __init__(self, running: Followed, clock: Callable[[], float]) -> None:
        self._running, self._clock = running, clock
        self._earlier = frozenset(running.exit_codes)
        self._active_t = self._polled_t = clock()
        self._used_s = running.cpu_seconds()

    def heard(self) -> None:
        """Note output or a report of the job."""
        self._active_t = self._clock()

    def is_over(self) -> bool:
        """Return whether all have exited or are idle; look at most every half second."""
        now = self._clock()
        if now - self._polled_t < POLL_S:
            return False
        self._polled_t = now
        if not self._running.alive():
            return True
        used_s = self._running.cpu_seconds()
        if used_s - self._used_s > IDLE_SHARE * (now - self._active_t) + IDLE_SHARE:
            self._active_t, self._used_s = now, used_s
        return now - self._active_t >= IDLE_S

    def returncode(self, training: Collection[int]) -> int:
        """Return the exit code of the processes that trained, or of all if that is unknown.

        `training` are the pids that have finished optimizer steps.
        """
        seen = dict(self._running.exit_codes)
        later = {pid: code for pid, code in seen.items() if pid not in self._earlier}
        codes = [code for pid, code in later.items() if pid in training] or list(later.values())
        return next((code for code in codes if code), 0)
