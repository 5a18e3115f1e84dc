"""Watches the kernel's count of OOM kills while an attempt runs."""

from __future__ import annotations

import threading

from oomguard.machine.cgroups import Cgroup
from oomguard.process.process_events import Emit, Kernel

_POLL_S = 0.2
_CLOSE_S = 1.0


class KernelWatch:
    """Emits each rise of the group's counter; `watched` says whether there is one to read."""

    def __init__(self, group: Cgroup | None, emit: Emit) -> None:
        self._group, self._emit = group, emit
        self._lock, self._closing = threading.Lock(), threading.Event()
        before = group.oom_kills() if group else None
        self.watched = before is not None
        self._before = self._last = before or 0
        self._thread = threading.Thread(target=self._watch, name="oomguard-kernel", daemon=True)
        if self.watched:
            self._thread.start()

    def check(self) -> None:
        """Look now; the kernel counts a kill before the victim is gone."""
        if not self.watched or self._group is None:
            return
        with self._lock:
            now = self._group.oom_kills()
            if now is not None and now > self._last:
                fresh, self._last = now - self._last, now
                self._emit(Kernel(oom_kills=fresh, total=now - self._before))

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.check()
