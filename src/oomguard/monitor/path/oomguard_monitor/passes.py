"""Note memory around the first backward passes: growth shows there before there are many steps."""

from __future__ import annotations

from . import usage
from .job_state import elements_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Shapes = dict[str, tuple[int, ...]]

#: Most passes in one report, and most shapes that are told apart.
MOST_PASSES, MOST_SHAPES = 32, 4096


class FirstPasses:
    """Memory before and after backward passes, until `stop`."""

    __slots__ = ("_before_bytes", "_passes", "_shapes", "_stopped", "_torch")

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._before_bytes: int | None = None
        self._passes: list[dict[str, int]] = []
        self._shapes: set[Any] = set()
        self._stopped = False

    def begin(self, data_bytes: int) -> None:
        """Note memory at the beginning of a pass; `data_bytes` is private data of the host."""
        if not self._stopped:
            self._before_bytes = usage.held_bytes(self._torch, data_bytes)

    def end(self, data_bytes: int, shapes: Shapes) -> None:
        """Note a pass that has ended, on a batch of these shapes; of many the last are kept."""
        before_bytes, self._before_bytes = self._before_bytes, None
        if before_bytes is None:
            return
        if len(self._shapes) < MOST_SHAPES:
            self._shapes.add(tuple(shapes.values()))
        self._passes = self._passes[1 - MOST_PASSES :]
        self._passes.append(
            {
                "shapes": len(self._shapes),
                "elements": elements_of(shapes),
                "before_bytes": before_bytes,
                "after_bytes": usage.held_bytes(self._torch, data_bytes),
            }
        )

    def take(self) -> list[dict[str, int]]:
        """Return the passes since the last call."""
        taken, self._passes = self._passes, []
        return taken

    def stop(self) -> None:
        """Note no more passes: from here on steps show growth as well."""
        self._stopped, self._before_bytes = True, None
        self._passes, self._shapes = [], set()
