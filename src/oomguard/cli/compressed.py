"""Compressed files, told by how they begin."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BufferedReader
from typing import IO, cast

from oomguard.errors import LogError, Where

_XZ, _ZSTD, _ZIP = b"\xfd7zXZ\0", b"(\xb5/\xfd", b"PK\3\4"
#: How a compressed file begins, and what opens it; or the command that prints it.
_OPENERS: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, _XZ: lzma.open,
}  # fmt: skip
_PRINTERS = {_ZSTD: "zstd -dc", _ZIP: "unzip -p"}
#: How compressed logs begin. A zip is not among them: weights are in one as well.
BEGINNINGS = (*_OPENERS, _ZSTD)


def opened(file: IO[bytes], name: str) -> IO[bytes]:
    """Return a stream of what a file holds uncompressed.

    Raises:
        LogError: if another program has to uncompress it.
    """
    head = cast(BufferedReader, file).peek(len(_XZ))
    source = "LOG" if name == "stdin" else name
    for magic, printer in _PRINTERS.items():
        if head.startswith(magic):
            raise LogError(
                "it is compressed",
                where=Where(file=name),
                next_step=f"Use: {printer} {source} | oomguard explain -",
            )
    opener = next((opens for magic, opens in _OPENERS.items() if head.startswith(magic)), None)
    return cast("IO[bytes]", opener(file)) if opener else file
