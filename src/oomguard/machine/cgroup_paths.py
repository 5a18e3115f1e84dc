"""Where the memory cgroups of this process are mounted, v1 and v2.

Sources: man cgroups, man proc_pid_mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
_VERSIONS = {"cgroup": 1, "cgroup2": 2}


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
    """Yield the group of each hierarchy, where it is mounted first."""
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
    """Return where below the mount a group is; None where it is outside.

    A container without a cgroup namespace sees its own group as the root of the mount.
    """
    inside = PurePosixPath(path)
    inside = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
    return inside if ".." not in inside.parts else None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
