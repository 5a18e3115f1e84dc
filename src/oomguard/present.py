"""What is at a path, as far as one may look: where one may not, nothing is.

`Path.exists` and its like raise PermissionError in a folder that may not be entered, such as the
home of root in a container that runs as another user; from Python 3.14 on they answer no.
"""

from __future__ import annotations

import os
from pathlib import Path


def exists(path: Path) -> bool:
    """Return whether anything is there."""
    return os.path.exists(path)  # noqa: PTH110  the reason for this module


def is_file(path: Path) -> bool:
    """Return whether a regular file is there."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether a folder is there."""
    return os.path.isdir(path)  # noqa: PTH112


def is_hidden(path: Path) -> bool:
    """Return whether one may not look whether anything is there."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def expanded(name: str) -> Path:
    """Return a path with the home folder for `~`; as it is where that folder is not known."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  Path's own raises RuntimeError
