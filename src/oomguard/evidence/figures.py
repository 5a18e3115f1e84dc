"""The sizes that a memory error states, and what they say about its cause."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from oomguard.evidence.verdict import Cause

#: Memory messages count in powers of 1024 even where they write GB (Ray, Paddle, older PyTorch).
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_SIZE = (
    r"(?P<n>\d[\d,]*(?:\.\d*)?)\s?(?P<u>(?:[KMGTPE]i?)?B|[KMGT](?=\s|\)|\.(?!\d)|,|$)|[Bb]ytes)?"
)

#: More than any machine has: the size itself is a symptom, as in "more than 1EB".
ABSURD_BYTES = 1 << 50


def _patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(text.replace("SIZE", _SIZE)) for text in texts)


_REQUESTED = _patterns(
    r"(?i:attempting to (?:reserve|allocate)) [^()]{0,40}\(SIZE\)",
    r"(?i:failed to alloc(?:ate)?) [^()]{0,60}\(SIZE\)",
    r"(?i:attempting to (?:reserve|allocate)) SIZE",
    r"(?i:tried|trying|try) to allocate:? (?:more than )?SIZE",
    r"Unable to allocate SIZE",
    r"failed to extend /dev/shm/\S+ to SIZE",
    r"memory allocation of SIZE",
    r"unable to mmap SIZE",
    r"alloc of size SIZE",
    r"[Aa]llocation failed for size:{0,2}\s?SIZE",
    r"buffer of size:? ?SIZE",
    r"(?i:failed to alloc(?:ate)?) SIZE",
    r"(?i:alloc\w*|memory)\b[^.;]{0,60}\bsize[:= ]{1,2}SIZE",
    r"memory of size:? SIZE",
    r"Cannot allocate SIZE",
    r"allocating SIZE",
    r"Requested\s*: SIZE",
)
_CAPACITY = _patterns(
    r"[Uu]sed \d[\d.]*[KMGT]i?B? of SIZE",
    r"total capac(?:i)?ty of SIZE", r"SIZE total capacity", r"max allowed: SIZE",
    r"was running was [\d.]+ ?GB / SIZE", r"Device limit\s*: SIZE",
)  # fmt: skip
_FREE = _patterns(r"of which SIZE is free", r"SIZE free")
_OURS = _patterns(r"this process has SIZE memory in use")
_OTHERS = _patterns(r"Process \d+ has SIZE memory in use")
_ALLOCATED = _patterns(
    r"SIZE is allocated by PyTorch", r"SIZE already allocated", r"MPS allocated: SIZE"
)
_RESERVED = _patterns(r"SIZE reserved in total")
_UNALLOCATED = _patterns(
    r"SIZE is reserved by PyTorch but unallocated", r"SIZE reserved but unallocated"
)


def _bytes(match: re.Match[str]) -> int:
    unit = (match["u"] or "").lower()
    shift = 0 if unit.startswith("byte") or unit == "b" else _UNITS[unit[:1]]
    number = match["n"].replace(",", "")
    return round(float(number) * (1 << shift)) if shift or "." in number else int(number)


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    found = (pattern.search(text) for pattern in patterns)
    return next((_bytes(match) for match in found if match), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """The sizes of one message, in bytes; None where it does not state them."""

    requested_bytes: int | None
    capacity_bytes: int | None
    free_bytes: int | None
    ours_bytes: int | None  # held by this process
    others_bytes: int  # held by processes that the message names
    reserved_bytes: int | None  # held by the allocator, in use or not
    unallocated_bytes: int | None  # reserved by the allocator and not in use

    def or_else(self, other: Stated) -> Stated:
        """Return these sizes, each missing one from `other`."""
        mine, theirs = asdict(self), asdict(other)
        return Stated(**{name: mine[name] or theirs[name] for name in mine})

    @property
    def absurd(self) -> bool:
        """Return whether the request is larger than any machine's memory."""
        return self.requested_bytes is not None and self.requested_bytes > ABSURD_BYTES

    @property
    def cause(self) -> Cause:
        """Why the request failed, as far as the sizes tell."""
        asked, capacity, ours = self.requested_bytes, self.capacity_bytes, self.ours_bytes
        if asked is None:
            return Cause.UNKNOWN
        if self.unallocated_bytes is not None and self.unallocated_bytes >= asked:
            return Cause.FRAGMENTATION
        if self.free_bytes is not None and self.free_bytes >= asked:
            return Cause.UNKNOWN  # it should have fitted: the sizes do not explain the failure
        if capacity is None or ours is None:
            return Cause.UNKNOWN
        if self.others_bytes > ours and ours + asked <= capacity // 2:
            return Cause.OTHER_PROCESS
        return Cause.CAPACITY


def read_figures(text: str) -> Stated:
    """Read the sizes of a memory error whose lines were joined by single spaces."""
    allocated, reserved = _first(_ALLOCATED, text), _first(_RESERVED, text)
    unallocated = _first(_UNALLOCATED, text)
    if unallocated is None and allocated is not None and reserved is not None:
        unallocated = reserved - allocated
    if reserved is None and allocated is not None and unallocated is not None:
        reserved = allocated + unallocated
    held = [_first(_OURS, text), reserved, allocated]
    return Stated(
        requested_bytes=_first(_REQUESTED, text),
        capacity_bytes=_first(_CAPACITY, text),
        free_bytes=_first(_FREE, text),
        # Inside a container the driver cannot see the process and says 0 bytes.
        ours_bytes=next((size for size in held if size), None),
        others_bytes=sum(_bytes(match) for match in _OTHERS[0].finditer(text)),
        reserved_bytes=reserved,
        unallocated_bytes=unallocated,
    )
