"""Parse and format sizes in bytes."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: 1 EiB: more than any machine has.
_MOST_BYTES = 1 << 60

_FACTORS = {
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    **{prefix + "ib": 1 << shift for prefix, shift in zip("kmgt", (10, 20, 30, 40), strict=True)},
    # A bare letter means the binary unit, as it does for Slurm, Docker and systemd.
    **{prefix: 1 << shift for prefix, shift in zip("kmgt", (10, 20, 30, 40), strict=True)},
    **{prefix + "b": 10**power for prefix, power in zip("kmgt", (3, 6, 9, 12), strict=True)},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Parse a size such as `24GiB`, `24G`, `16 GB` or, from 1 MiB on, `1048576` as bytes.

    `KiB`, `MiB`, `GiB`, `TiB` and the bare letters are powers of 1024; `KB` to `TB` powers of 1000.

    Raises:
        ValueError: if the text is not a positive size.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write for example 24GiB, 800MiB or 16GB")
    if float(match[1]) * factor > _MOST_BYTES:
        raise ValueError(f"{text[:40]!r} is more memory than any machine has")
    size = int(float(match[1]) * factor)
    if size <= 0:
        raise ValueError(f"{text!r} is not a positive size")
    if not match[2] and size < MIB:  # nobody means 24 bytes
        raise ValueError(f"{text!r} has no unit; write for example {match[1]}GiB")
    return size


def show_seconds(seconds: float | None) -> str:
    """Return whole seconds with their unit, "" where they are not known."""
    return "" if seconds is None else f"{seconds:.0f} s"


def show_bytes(size_bytes: int) -> str:
    """Format bytes in GiB, or in MiB, KiB or B if they are less."""
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= unit / 10 and (unit != GIB or abs(size_bytes) >= unit):
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes} B"
