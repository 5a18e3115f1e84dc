"""Run the `sitecustomize` that would have run if ours were not first on the path."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

#: Files that were run: a chained one that imports `sitecustomize` again must not run twice.
_RAN: set[str] = set()


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
