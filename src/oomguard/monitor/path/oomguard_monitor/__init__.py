"""The reporter inside the job: hooks in when torch is imported, and never breaks the job.

Every Python process of the job imports this, most of them have no torch: only what is needed
to wait for torch is imported here. Python 3.8 syntax, the standard library, the job's torch.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Files that were run: a chained one that imports `sitecustomize` again must not run twice.
_RAN: set[str] = set()


def start(environ: Mapping[str, str]) -> bool:
    """Wait for torch, if the environment says where to report to; say whether it does."""
    socket_path = environ.get("OOMGUARD_SOCKET") or None
    buffer_folder = environ.get("OOMGUARD_BUFFER") or None
    if socket_path is None and buffer_folder is None:
        return False
    from .imports import Finder, is_waiting  # noqa: PLC0415 - most processes need none of it
    from .phases import LIBRARIES  # noqa: PLC0415

    if is_waiting():  # another `sitecustomize` has imported ours again
        return True

    def torch_imported(torch: object) -> None:
        from .install import install  # noqa: PLC0415 - only beside torch

        install(torch, finder, socket_path, buffer_folder)

    finder = Finder(LIBRARIES)  # some of them import torch
    finder.on_import("torch", torch_imported)
    finder.install()
    return True


def run_next_sitecustomize(own_folder: str) -> None:
    """Run the next `sitecustomize` behind `own_folder` on `sys.path`, if there is one.

    It takes our place in `sys.modules`, as it would without us. What it raises is passed on:
    `site` prints it just as it would have.
    """
    spec = PathFinder.find_spec("sitecustomize", _behind(own_folder))
    if spec is None or spec.loader is None or spec.origin is None:
        return
    origin = os.path.realpath(spec.origin)
    if origin in _RAN:
        return
    _RAN.add(origin)
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _behind(own_folder: str) -> list[str]:
    """List the entries of `sys.path` behind the first that is our folder, without it."""
    own = os.path.realpath(own_folder)
    ours = [os.path.realpath(entry or os.curdir) == own for entry in sys.path]
    first = ours.index(True) if True in ours else -1
    return [
        entry
        for number, (entry, is_own) in enumerate(zip(sys.path, ours))  # noqa: B905 - 3.8
        if number > first and not is_own
    ]
