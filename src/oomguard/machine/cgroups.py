"""Memory cgroups, v1 and v2: the one oomguard is in, and a new one for an attempt.

Sources: Linux Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst, man cgroups, man
proc_pid_mountinfo.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from oomguard import present

PROC = Path("/proc")
_PREFIX = "oomguard"
_REMOVE_S, _REMOVE_POLL_S = 1.0, 0.01
_VERSIONS = {"cgroup": 1, "cgroup2": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The folder of a memory cgroup, and the version of its hierarchy (1 or 2)."""

    folder: Path
    version: int

    def oom_kills(self) -> int | None:
        """Return how many of its processes the OOM killer has killed; None if that is not counted.

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
        """Create a group below this one that counts and limits memory.

        Raises:
            OSError: if that is not allowed, or v2 does not delegate the controller (a group
                with processes of its own cannot, unless it is the root).
        """
        self._sweep()
        child = Cgroup(folder=self.folder / name, version=self.version)
        child.folder.mkdir()
        try:
            if self.version == 2 and not present.exists(child.folder / "memory.events"):  # noqa: PLR2004
                (self.folder / "cgroup.subtree_control").write_text("+memory")
                (child.folder / "memory.events").read_text()
        except OSError:
            child.folder.rmdir()
            raise
        return child

    def cap(self, size_bytes: int) -> None:
        """Limit memory to `size_bytes`, without swap.

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
        """Remove it, waiting briefly for its last processes; return whether it is gone."""
        deadline = time.monotonic() + _REMOVE_S
        while present.exists(self.folder):
            for folder in reversed(list(self._folders())):
                with suppress(OSError):
                    folder.rmdir()
            if time.monotonic() > deadline:
                break
            if present.exists(self.folder):
                time.sleep(_REMOVE_POLL_S)
        return not present.exists(self.folder)

    def _write(self, name: str, value: int) -> None:
        with (self.folder / name).open("r+") as file:  # never creates what the kernel lacks
            file.write(str(value))

    def _folders(self) -> Iterator[Path]:
        for folder, _, _ in os.walk(self.folder):
            yield Path(folder)

    def _sweep(self) -> None:
        """Remove the unused groups of supervisors that were killed."""
        for folder in self.folder.glob(f"{_PREFIX}-*-*"):
            owner = folder.name.split("-")[1]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                with suppress(OSError):
                    folder.rmdir()


def name_for(mark: str) -> str:
    """Return the name of an attempt's group: this process's id and the attempt's mark."""
    return f"{_PREFIX}-{os.getpid()}-{re.sub(r'[^A-Za-z0-9_.]', '_', mark)}"


def own_cgroup(procfs: Path = PROC) -> Cgroup | None:
    """Find the memory cgroup that this process is in, v1 before v2; None if there is none."""
    for group in own_groups(procfs):
        if present.is_folder(group.folder):
            return Cgroup(folder=group.folder, version=group.version)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The folder of a memory cgroup, the topmost that can be seen, and the version (1 or 2)."""

    folder: Path
    top: Path
    version: int


def own_groups(procfs: Path = PROC) -> tuple[Group, ...]:
    """Find the memory cgroups that this process is in, v1 before v2; none without cgroups."""
    try:
        groups = (procfs / "self/cgroup").read_text().splitlines()
        mounts = (procfs / "self/mountinfo").read_text().splitlines()
    except OSError:
        return ()
    paths = dict(_paths(groups))
    return tuple(sorted(_mounted(paths, mounts), key=lambda group: group.version))


def _paths(groups: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            yield (1 if controllers else 2), path


def _mounted(paths: dict[int, str], mounts: Iterable[str]) -> Iterator[Group]:
    """Yield the group of each hierarchy at its first mount."""
    waiting = dict(paths)
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        version = _VERSIONS.get(kind)
        if version is None or (version == 1 and "memory" not in options.split(",")):
            continue
        path = waiting.pop(version, None)
        root, point = (_unescape(text) for text in left.split(" ")[3:5])
        inside = None if path is None else _inside(path, root)
        if inside is not None:
            yield Group(folder=Path(point, inside), top=Path(point), version=version)


def _inside(path: str, root: str) -> PurePosixPath | None:
    """Return the path of a group below the mount; None if it is outside.

    A container without a cgroup namespace sees its own group as the root of the mount.
    """
    inside = PurePosixPath(path)
    inside = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
    return inside if ".." not in inside.parts else None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
