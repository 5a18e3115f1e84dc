"""The reporter inside the job: hooks in when torch is imported, and never breaks the job.

Every Python process of the job imports this, most of them have no torch: only what is needed
to wait for torch is imported here. Python 3.8 syntax, the standard library, the job's torch.
"""

from __future__ import annotations

from .chain import run_next_sitecustomize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["run_next_sitecustomize", "start"]


def start(environ: Mapping[str, str]) -> bool:
    """Wait for torch, if the environment says where to report to; say whether it does."""
    socket_path = environ.get("OOMGUARD_SOCKET") or None
    buffer_folder = environ.get("OOMGUARD_BUFFER") or None
    if socket_path is None and buffer_folder is None:
        return False
    from .imports import Finder, is_waiting  # noqa: PLC0415 - most processes need none of it
    from .libraries import LIBRARIES  # noqa: PLC0415

    if is_waiting():  # another `sitecustomize` has imported ours again
        return True

    def torch_imported(torch: object) -> None:
        from .install import install  # noqa: PLC0415 - only beside torch

        install(torch, finder, socket_path, buffer_folder)

    finder = Finder(LIBRARIES)  # some of them import torch
    finder.on_import("torch", torch_imported)
    finder.install()
    return True
