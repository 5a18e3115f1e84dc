"""Memory cgroups, v1 and v2: the one oomguard is in, and one of its own for an attempt.

Sources: Linux Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from oomguard.machine.cgroup_paths import PROC, own_groups

_PREFIX = "oomguard"
_REMOVE_S, _REMOVE_POLL_S = 1.0, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The folder of a memory cgroup, and the version of its hierarchy (1 or 2)."""

    folder: Path
    version: int

    def oom_kills(self) -> int | None:
        """How many of its processes the OOM killer has killed; None where that is not counted.

        v1 counts the victim's own group alone, v2 all below it too.
        """
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        with suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", (self.folder / name).read_text(), re.MULTILINE)
            return int(found[1]) if found else None
        return None

    def pids(self) -> set[int]:
        """Return every process in it or in a group below it."""
        found: set[int] = set()
        for folder in self._folders():
            with suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
        return found

    def make(self, name: str) -> Cgroup:
        """Make a group below this one that counts and limits memory.

        Raises:
            OSError: where that is not allowed, or v2 does not hand the controller down (a group
                with processes of its own cannot, unless it is the root).
        """
        self._sweep()
        child = Cgroup(folder=self.folder / name, version=self.version)
        child.folder.mkdir()
        try:
            if self.version == 2 and not (child.folder / "memory.events").exists():  # noqa: PLR2004
                (self.folder / "cgroup.subtree_control").write_text("+memory")
                (child.folder / "memory.events").read_text()
        except OSError:
            child.folder.rmdir()
            raise
        return child

    def cap(self, size_bytes: int) -> None:
        """Limit memory to `size_bytes`, with no way out into swap.

        Raises:
            OSError: if a limit cannot be written.
        """
        if self.version == 1:
            self._write("memory.limit_in_bytes", size_bytes)
            with suppress(FileNotFoundError):  # only where the kernel accounts for swap
                self._write("memory.memsw.limit_in_bytes", size_bytes)
            return
        self._write("memory.max", size_bytes)
        with suppress(FileNotFoundError):
            self._write("memory.swap.max", 0)
        with suppress(FileNotFoundError):  # Linux 4.19; one victim is enough to be noticed
            self._write("memory.oom.group", 0)

    def remove(self) -> bool:
        """Remove it, waiting shortly for its last processes; say whether it is gone."""
        deadline = time.monotonic() + _REMOVE_S
        while self.folder.exists():
            for folder in reversed(list(self._folders())):
                with suppress(OSError):
                    folder.rmdir()
            if time.monotonic() > deadline:
                break
            if self.folder.exists():
                time.sleep(_REMOVE_POLL_S)
        return not self.folder.exists()

    def _write(self, name: str, value: int) -> None:
        with (self.folder / name).open("r+") as file:  # never creates what the kernel lacks
            file.write(str(value))

    def _folders(self) -> Iterator[Path]:
        for folder, _, _ in os.walk(self.folder):
            yield Path(folder)

    def _sweep(self) -> None:
        """Remove what supervisors that were killed have left; what is in use stays."""
        for folder in self.folder.glob(f"{_PREFIX}-*-*"):
            owner = folder.name.split("-")[1]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                with suppress(OSError):
                    folder.rmdir()


def name_for(mark: str) -> str:
    """Return the group of the attempt with this mark, after this process and the mark."""
    return f"{_PREFIX}-{os.getpid()}-{re.sub(r'[^A-Za-z0-9_.]', '_', mark)}"


def own_cgroup(procfs: Path = PROC) -> Cgroup | None:
    """Find the memory cgroup that this process is in, v1 before v2; None where there is none."""
    for group in own_groups(procfs):
        if group.folder.is_dir():
            return Cgroup(folder=group.folder, version=group.version)
    return None
