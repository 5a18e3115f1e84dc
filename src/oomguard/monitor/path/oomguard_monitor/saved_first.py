"""Save the checkpoint that was due when the evaluation before it ran out of memory.

The Trainer evaluates before it saves: where both are due in the same step, an OOM in the evaluation
would lose every step since the last checkpoint. Nothing changes until there is an OOM.
Source: transformers 5.23, trainer.py, `_maybe_log_save_evaluate`.
"""

from __future__ import annotations

import contextlib
import functools
import os

from . import oom
from .freeing import free_memory, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .install import Function, Patches

#: Strategies that do not depend on the evaluation's result. Source: transformers' SaveStrategy.
_REGARDLESS = ("steps", "epoch")


def hook_saving(trainer_class: Any, patches: Patches, torch: Any) -> None:
    """Hook the place where the Trainer evaluates, then saves."""

    def saving(original: Function) -> Function:
        @functools.wraps(original)
        def evaluate_and_save(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(self, *args, **kwargs)
            except Exception as error:
                if oom.find(error) is not None and not patches.reporter.disabled:
                    with contextlib.suppress(Exception):  # the job's own error is what counts
                        _save(self, error, torch)
                raise

        return evaluate_and_save

    patches.replace(trainer_class, "_maybe_log_save_evaluate", saving)


def _save(trainer: Any, error: BaseException, torch: Any) -> None:
    """Save if the evaluation failed and a checkpoint of this step is due and not there."""
    args, control = trainer.args, trainer.control
    kind = getattr(args.save_strategy, "value", args.save_strategy)
    alone = int(trainer.accelerator.num_processes) == 1  # others would have to join in
    if not (control.should_evaluate and control.should_save and kind in _REGARDLESS and alone):
        return
    if os.path.exists(  # noqa: PTH110 - no pathlib
        os.path.join(args.output_dir, f"checkpoint-{trainer.state.global_step}")  # noqa: PTH118
    ):
        return  # it is the save that failed
    release(error)
    free_memory(torch)
    trainer._save_checkpoint(trainer.model, None)  # noqa: SLF001 - as the Trainer itself would
