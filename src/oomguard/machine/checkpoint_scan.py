"""Find the checkpoints that an attempt wrote, and tell whole ones from damaged ones.

Nothing is unpickled: a damaged or hostile file is only measured and its table of contents read.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oomguard import present
from oomguard.job.checkpoint import Checkpoint, Layout

_HEADER_LENGTH_BYTES = 8  # of a safetensors file, little endian, before the JSON header
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_PICKLE = b"\x80"
#: transformers 5 has it in a checkpoint while it writes one that a SIGTERM asked for.
_UNDER_WAY = "checkpoint-is-incomplete.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The checkpoints that are there: whole ones, the newest first, and the paths of the others."""

    whole: tuple[Checkpoint, ...] = ()
    damaged: tuple[str, ...] = ()


Stamp = Mapping[str, int]


def stamp(layout: Layout) -> Stamp:
    """Note which checkpoints are there now, each with the time of its newest change (ns)."""
    return {str(path): _changed_ns(path) for path, _ in _candidates(layout)}


def find(layout: Layout, *, before: Stamp) -> Found:
    """Find the checkpoints that were written or changed since `before` was noted."""
    whole: list[Checkpoint] = []
    damaged: list[str] = []
    for path, step in _candidates(layout):
        if before.get(str(path)) == _changed_ns(path):
            continue
        if is_whole(path, step, layout.needs):
            whole.append(Checkpoint(path=str(path), step=step))
        else:
            damaged.append(str(path))
    whole.sort(key=lambda checkpoint: -checkpoint.step)
    return Found(whole=tuple(whole), damaged=tuple(sorted(damaged)))


def is_whole(path: Path, step: int, needs: tuple[str, ...]) -> bool:
    """Return whether every needed file is there and none is cut off or says another step.

    A need may name alternatives: `optimizer.pt|optimizer.bin`.
    """
    try:
        if present.exists(path / _UNDER_WAY):
            return False
        for need in needs:
            if not any(any(path.glob(glob)) for glob in need.split("|")):
                return False
        return all(_is_sound(file, step) for file in path.rglob("*") if present.is_file(file))
    except OSError:
        return False


def _candidates(layout: Layout) -> list[tuple[Path, int]]:
    try:
        entries = sorted(Path(layout.folder).iterdir())
    except OSError:
        return []
    matches = [
        (path, re.fullmatch(layout.name, path.name)) for path in entries if present.is_folder(path)
    ]
    return [(path, int(match["step"])) for path, match in matches if match]


def _changed_ns(path: Path) -> int:
    try:
        return max(entry.stat().st_mtime_ns for entry in (path, *path.rglob("*")))
    except OSError:
        return 0


def _is_sound(file: Path, step: int) -> bool:
    match file.suffix:
        case ".safetensors":
            return _safetensors_is_sound(file)
        case ".pt" | ".pth" | ".bin":
            return _archive_is_sound(file)
        case ".json":
            return _json_is_sound(file, step)
    return True


def _safetensors_is_sound(file: Path) -> bool:
    """Check that the header can be read and that the data it describes is all there."""
    size_bytes = file.stat().st_size
    with file.open("rb") as data:
        length = int.from_bytes(data.read(_HEADER_LENGTH_BYTES), "little")
        if length > min(size_bytes, _MOST_HEADER_BYTES):
            return False
        try:
            header = json.loads(data.read(length))
            ends = [row["data_offsets"][1] for name, row in header.items() if name[:2] != "__"]
        except (ValueError, TypeError, KeyError, IndexError):
            return False
    return size_bytes == _HEADER_LENGTH_BYTES + length + max(ends, default=0)


def _archive_is_sound(file: Path) -> bool:
    """Check a file of torch.save: a zip archive whose table of contents stands at its end.

    What an old torch wrote is a bare pickle; of that only the first byte can be told from outside.
    """
    with file.open("rb") as data:
        head = data.read(1)
    if head == _PICKLE:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return bool(archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def _json_is_sound(file: Path, step: int) -> bool:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    if file.name != "trainer_state.json" or not isinstance(document, dict):
        return True
    return bool(document.get("global_step") == step)
