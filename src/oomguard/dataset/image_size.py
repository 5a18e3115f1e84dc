"""How large images are, by the heads of their files: PNG, JPEG, GIF, BMP and WebP."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

#: Height and width in pixels.
Size = tuple[int, int]

_HEAD_BYTES = 32
#: JPEG's frame headers, which hold the size: all of 0xC0 to 0xCF but tables and extensions.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers that stand alone, without a length.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_MARKER = 0xFF


def size_of(path: Path) -> Size | None:
    """Return height and width of an image; None if the file cannot be read or is not an image."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            found = _jpeg(file) if head.startswith(b"\xff\xd8") else _plain(head) or _webp(head)
    except (OSError, struct.error):
        return None
    return found if found and min(found) > 0 else None


def _plain(head: bytes) -> Size | None:
    """Read formats whose size stands at a fixed place."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", head, 16)
    elif head.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", head, 6)
    elif head.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", head, 18)  # a negative height: top down
    else:
        return None
    return abs(height), width


def _webp(head: bytes) -> Size | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", head, 26))
    return height, width


def _jpeg(file: BinaryIO) -> Size | None:
    """Walk the segments to the frame's header."""
    file.seek(2)
    while (mark := file.read(2)) and len(mark) == 2 and mark[0] == _MARKER:  # noqa: PLR2004
        kind = mark[1]
        if kind == _MARKER:  # a fill byte
            file.seek(-1, 1)
        elif kind not in _ALONE:
            (length,) = struct.unpack(">H", file.read(2))
            if kind in _FRAMES:
                height, width = struct.unpack(">xHH", file.read(5))
                return height, width
            file.seek(length - 2, 1)
    return None
