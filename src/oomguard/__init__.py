"""oomguard gets a fine-tuning job that runs out of memory to complete, and reports what changed.

`plan`, `launch` and `explain` are its commands as functions, see `oomguard.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oomguard.api import explain as explain
    from oomguard.api import launch as launch
    from oomguard.api import plan as plan

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the functions when they are used: the job's own processes need none of them."""
    if name not in ("explain", "launch", "plan"):
        raise AttributeError(f"module 'oomguard' has no attribute {name!r}")
    from oomguard import api  # noqa: PLC0415

    return getattr(api, name)
