"""stdout and stderr, which may be closed, full, or without a reader."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import click

_STDERR = 2


def open_missing() -> None:
    """Open those of stdin, stdout and stderr that are closed, and print what they cannot encode.

    Otherwise the next file that is opened gets their number, and what is printed goes into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:  # the lowest free one
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):
            os.set_blocking(number, True)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send what is yet to be written to a stream, buffered or not, to nowhere."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
    with suppress(OSError, ValueError):
        stream.flush()


def is_of_output(error: OSError) -> bool:
    """Return whether stdout caused an error; what is left of its output is then discarded."""
    origin = traceback.extract_tb(error.__traceback__)[-1]
    if (origin.filename, origin.name) != (click.utils.__file__, "echo"):
        return False
    discard(sys.stdout)
    return True
