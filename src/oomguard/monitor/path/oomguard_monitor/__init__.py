"""The monitor: hooks the job when torch is imported, and never breaks it.

Every Python process of the job imports this, and most never import torch: only what is needed to
wait for torch is imported here. Python 3.8 syntax, the standard library and the job's torch.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Files that were run: one that imports `sitecustomize` again must not run twice.
_RAN: set[str] = set()


def start(environ: Mapping[str, str]) -> bool:
    """Wait for torch if the environment names a socket or a folder; return whether it does."""
    socket_path = environ.get("OOMGUARD_SOCKET") or None
    buffer_folder = environ.get("OOMGUARD_BUFFER") or None
    if socket_path is None and buffer_folder is None:
        return False
    from .imports import Finder, is_waiting  # noqa: PLC0415 - most processes do not need it
    from .phases import LIBRARIES  # noqa: PLC0415

    if is_waiting():  # another `sitecustomize` imported ours again
        return True

    def torch_imported(torch: object) -> None:
        from .install import install  # noqa: PLC0415 - only with torch

        install(torch, finder, socket_path, buffer_folder)

    finder = Finder(LIBRARIES)  # some of them import torch
    finder.on_import("torch", torch_imported)
    finder.install()
    return True


def run_next_sitecustomize(own_folder: str) -> None:
    """Run the next `sitecustomize` after `own_folder` on `sys.path`, if there is one.

    It replaces ours in `sys.modules`. Its exceptions propagate: `site` prints them as it would
    without the monitor.
    """
    spec = PathFinder.find_spec("sitecustomize", _after(own_folder))
    if spec is None or spec.loader is None or spec.origin is None:
        return
    origin = os.path.realpath(spec.origin)
    if origin in _RAN:
        return
    _RAN.add(origin)
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _after(own_folder: str) -> list[str]:
    """Return the entries of `sys.path` after our folder."""
    own = os.path.realpath(own_folder)
    ours = [os.path.realpath(entry or os.curdir) == own for entry in sys.path]
    first = ours.index(True) if True in ours else -1
    return [
        entry
        for number, (entry, is_own) in enumerate(zip(sys.path, ours))  # noqa: B905 - 3.8
        if number > first and not is_own
    ]
