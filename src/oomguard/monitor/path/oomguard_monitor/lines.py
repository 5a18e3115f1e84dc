"""Encode a report as one line of JSON of at most 64 KiB, and describe exceptions in it."""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = 1
MAX_LINE_BYTES = 64 << 10
_MAX_FRAMES = 60
_MAX_TEXT = 4000
#: Fields that are emptied in a line that is too long, the most useful last.
_EXPENDABLE = ("frames", "shapes", "memory")


def encode(fields: dict[str, object]) -> bytes:
    """Return a report as a line; one that is too long loses frames, then shapes, then memory."""
    for name in (None, *_EXPENDABLE):
        if name in fields:
            fields[name] = [] if name == "frames" else {}
        line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            return line
    raise ValueError(f"a line of type {fields.get('type')} is longer than {MAX_LINE_BYTES} bytes")


def heading(type_: str, torch: Any, environ: Mapping[str, str]) -> dict[str, object]:
    """Return the fields that identify the process and the time."""
    rank, world = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank is None or world is None:
        rank, world = _distributed(torch, rank, world)
    return {
        "v": VERSION,
        "type": type_,
        "pid": os.getpid(),
        "rank": rank,
        "local_rank": _number(environ, "LOCAL_RANK"),
        "world": world,
        "t": time.monotonic(),
    }


def frames_of(error: BaseException) -> list[tuple[str, int, str]]:
    """Return (file, line, function) of each frame of a traceback, innermost last."""
    frames: list[tuple[str, int, str]] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return frames


def shown(frames: list[tuple[str, int, str]]) -> list[str]:
    """Return the innermost frames as `file:line function`."""
    return [f"{file}:{line} {function}" for file, line, function in frames[-_MAX_FRAMES:]]


def cut(text: str) -> str:
    """Keep both ends of a long text: a message wrapped in a worker's traceback comes last."""
    if len(text) <= _MAX_TEXT:
        return text
    return text[: _MAX_TEXT // 2] + " ... " + text[-_MAX_TEXT // 2 :]


def type_name(error: BaseException) -> str:
    """Return the class of an exception as a traceback shows it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else _qualified(kind)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    try:
        return int(environ.get(name, ""))
    except ValueError:
        return None


def _distributed(torch: Any, rank: int | None, world: int | None) -> tuple[int | None, int | None]:
    """Read rank and world from torch.distributed if the launcher set no environment."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not hasattr(torch, "distributed"):
        return rank, world
    distributed_any: Any = distributed
    if not (distributed_any.is_available() and distributed_any.is_initialized()):
        return rank, world
    return (
        distributed_any.get_rank() if rank is None else rank,
        distributed_any.get_world_size() if world is None else world,
    )
