"""Hand the Trainer the checkpoint to go on from, where the job's script does not.

The one thing that is changed for the job and not only watched: scripts that call `trainer.train()`
accept `--resume_from_checkpoint` and ignore it. It stays when the reporter steps aside.
"""

from __future__ import annotations

import functools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "OOMGUARD_RESUME"


def go_on(module: Any, checkpoint: str | None) -> None:
    """Have the first call of `Trainer.train` begin at a checkpoint unless it names one itself."""
    trainer: Any = getattr(module, "Trainer", None)
    original, waiting = getattr(trainer, "train", None), [checkpoint]
    if original is None or not checkpoint:
        return

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        begins = waiting.pop() if waiting else resume_from_checkpoint
        return original(self, resume_from_checkpoint or begins, *args, **kwargs)

    trainer.train = train
