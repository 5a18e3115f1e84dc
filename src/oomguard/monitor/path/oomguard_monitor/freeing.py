"""Return the memory of a pass that failed."""

from __future__ import annotations

import gc
import traceback

from . import oom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def release(error: BaseException) -> None:
    """Release what the frames of a traceback hold: the tensors of the failed pass."""
    for one in oom.chain(error):
        traceback.clear_frames(one.__traceback__)


def free_memory(torch: Any) -> None:
    """Return what nothing holds any more to the device."""
    gc.collect()
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
