"""What this process is doing: phase, optimizer steps, shapes of the batch."""

from __future__ import annotations

import math
import threading
from itertools import islice

from . import phases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Shapes = dict[str, tuple[int, ...]]

_MAX_SHAPES = 32


class MonitorState:
    """State of one process. Hooks change it on every step, so each change is a few assignments.

    Only the training thread has phases: one that saves in the background, or autograd's thread that
    recomputes a checkpointed part, changes nothing.

    `shapes` are those of the current batch, `_largest` those of the largest batch since the last
    call of `largest`. Loaders prefetch: once the training loop passes its batch (`trains_on`),
    fetched batches are ignored.
    """

    __slots__ = (
        "_fresh_backward", "_is_passed", "_largest", "_thread", "phase", "shapes", "step",
    )  # fmt: skip

    def __init__(self) -> None:
        self.phase = phases.LOAD
        self.step = 0
        self.shapes: Shapes = {}
        self._largest: Shapes = {}
        self._is_passed = False
        self._thread = threading.get_ident()
        self._fresh_backward = False

    def enter(self, phase: str) -> str | None:
        """Enter a phase; return the one to go back to, or None if nothing changed."""
        before = self.phase
        if not self._counts(phase, before):
            return None
        if before in phases.ENCLOSING and phase in phases.YIELDING:
            return None
        self.phase = phase
        return before

    def leave(self, phase: str, before: str | None) -> None:
        """Leave a phase; after a phase of training it never goes back to one before training."""
        if before is None:
            return
        if phase in {phases.BACKWARD, phases.OPTIMIZER, phases.FORWARD}:
            if before in phases.BEFORE_TRAINING:
                before = phases.FORWARD
            if phase == phases.BACKWARD and before != phases.BACKWARD:
                self._fresh_backward = True
        self.phase = before

    def finish_step(self) -> bool:
        """Count an optimizer step; return whether it counts: the first after a backward pass.

        ZeRO-3 calls `step` once for each of its sub-groups.
        """
        if not self._fresh_backward:
            return False
        self._fresh_backward = False
        self.step += 1
        return True

    def begin_training(self) -> None:
        """Enter the forward phase: a batch was fetched, or gradients were cleared."""
        if self.phase == phases.LOAD and threading.get_ident() == self._thread:
            self.phase = phases.FORWARD

    def fetched(self, batch: Any) -> None:
        """Assume that a fetched batch is trained on, unless the loop passes its batch."""
        if self.phase != phases.EVAL:
            if not self._is_passed:
                self._note(batch)
            self.begin_training()

    def trains_on(self, batch: Any) -> None:
        """Note the shapes of the batch of a training step."""
        if not self._is_passed:
            self._is_passed, self._largest = True, {}
        self._note(batch)

    def largest(self) -> Shapes:
        """Return the shapes of the largest batch since the last call."""
        largest, self._largest = self._largest or self.shapes, {}
        return largest

    def _note(self, batch: Any) -> None:
        self.shapes = shapes_of(batch)
        if elements_of(self.shapes) > elements_of(self._largest):
            self._largest = self.shapes

    def forked(self) -> None:
        """Reset the state in a forked child."""
        self.phase, self.step = phases.UNKNOWN, 0
        self.shapes, self._largest, self._is_passed = {}, {}, False
        self._thread, self._fresh_backward = threading.get_ident(), False

    def _counts(self, phase: str, before: str) -> bool:
        thread = threading.get_ident()
        if thread == self._thread:
            return True
        if phase == phases.OPTIMIZER or (phase == phases.BACKWARD and before != phase):
            self._thread = thread  # some jobs do not train in the main thread
            return True
        return False


def shapes_of(batch: Any) -> Shapes:
    """Return name -> shape of the tensors in a mapping or sequence, or of one tensor."""
    if hasattr(batch, "items"):
        pairs = batch.items()
    elif isinstance(batch, (list, tuple)):
        pairs = enumerate(batch)
    else:
        pairs = ((0, batch),)
    return {
        str(name): tuple(value.shape)
        for name, value in islice(pairs, _MAX_SHAPES)
        if hasattr(value, "shape")
    }


def elements_of(shapes: Shapes) -> int:
    """Return the number of elements of the largest tensor."""
    return max((math.prod(shape) for shape in shapes.values()), default=0)
