"""Hook torch and the training libraries, each as soon as it is imported."""

from __future__ import annotations

import functools
import os
import sys

from . import phases
from .count_hooks import hook_trainer
from .phases import DATASETS, LIBRARIES, LOOPS, TRAINER
from .saved_first import hook_saving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .count_hooks import Counting
    from .imports import Finder
    from .install import Function, Patches


def hook_libraries(torch: Any, finder: Finder, patches: Patches, counting: Counting) -> None:
    """Hook each library as soon as it is imported."""

    def hook(name: str) -> Callable[[Any], None]:
        def imported(module: Any) -> None:
            for class_name, function, phase in LIBRARIES[name]:
                owner = module if class_name is None else getattr(module, class_name, None)
                patches.watch(owner, function, phase)
            if name == TRAINER:
                _hook_training_step(getattr(module, "Trainer", None), patches, torch)
                hook_trainer(getattr(module, "Trainer", None), patches, counting)
                hook_saving(getattr(module, "Trainer", None), patches, torch)
                _resume_from(module, os.environ.get("OOMGUARD_RESUME"))
            if name == DATASETS:
                _hook_map(getattr(module, "Dataset", None), patches)
            if name in LOOPS:
                class_name, function = LOOPS[name]
                owner = module if class_name is None else getattr(module, class_name, None)
                _hook_loop(owner, function, patches)

        return imported

    for name in LIBRARIES:
        finder.on_import(name, hook(name))


def _hook_loop(owner: Any, function: str, patches: Patches) -> None:
    """Report how a training loop ends."""

    def looping(original: Function) -> Function:
        @functools.wraps(original)
        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                result = original(*args, **kwargs)
            except BaseException:
                patches.reporter.trained(False)
                raise
            patches.reporter.trained(True)
            return result

        return train

    patches.replace(owner, function, looping)


def _hook_map(dataset: Any, patches: Patches) -> None:
    """Hook a pass over the data, and report its end: a later kill is not due to it."""

    def mapping(original: Function) -> Function:
        watched = patches.watching(original, phases.PREPROCESS)

        @functools.wraps(original)
        def map_(*args: Any, **kwargs: Any) -> Any:
            mapped = watched(*args, **kwargs)
            patches.reporter.prepared()
            return mapped

        return map_

    patches.replace(dataset, "map", mapping)


def _hook_training_step(trainer: Any, patches: Patches, torch: Any) -> None:
    """Hook the Trainer's training step for the batch it trains on: it fetches batches ahead.

    With `OOMGUARD_IN_PLACE` a step that runs out of memory runs again in parts, each of them
    watched.
    """

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            patches.reporter.trains_on((*args[2:3], kwargs.get("inputs"))[0])
            return original(*args, **kwargs)

        return training_step

    patches.watch(trainer, "training_step", phases.FORWARD)
    if os.environ.get("OOMGUARD_IN_PLACE"):
        from .in_place import hook_steps  # noqa: PLC0415 - only where it is asked for
        from .in_place_eval import hook_evaluation  # noqa: PLC0415 - the same

        hook_steps(trainer, patches, torch)
        hook_evaluation(trainer, patches, torch)
    patches.replace(trainer, "training_step", stepping)


def hook_torch(torch: Any, patches: Patches) -> None:
    """Hook torch: backward, optimizer steps, batches, saving and loading."""
    patches.watch(getattr(torch, "autograd", None), "backward", phases.BACKWARD)
    patches.watch(torch, "save", phases.SAVE)
    patches.watch(torch, "load", phases.LOAD)
    _hook_optimizer(torch, patches)
    _hook_data(torch, patches)


def _hook_optimizer(torch: Any, patches: Patches) -> None:
    """Hook `step` of each optimizer class: torch wraps it when the first instance is created."""
    optimizer = getattr(getattr(torch, "optim", None), "Optimizer", None)

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def profile_hook_step(step: Function) -> Function:
            return patches.watching(original(step), phases.OPTIMIZER)

        return profile_hook_step

    def clearing(original: Function) -> Function:
        @functools.wraps(original)
        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            if not patches.is_compiling():
                patches.reporter.begin_training()
            return original(*args, **kwargs)

        return zero_grad

    patches.replace(optimizer, "profile_hook_step", stepping)
    patches.replace(optimizer, "zero_grad", clearing)


def _hook_data(torch: Any, patches: Patches) -> None:
    """Hook the fetching of batches, and failures that a worker passes to its parent."""
    reporter = patches.reporter

    def fetching(original: Function) -> Function:
        watched = patches.watching(original, phases.BATCH)

        @functools.wraps(original)
        def fetch(*args: Any, **kwargs: Any) -> Any:
            batch = watched(*args, **kwargs)
            reporter.fetched(batch)
            return batch

        return fetch

    def passing_on(original: Function) -> Function:
        @functools.wraps(original)
        def init(self: Any, exc_info: Any = None, *args: Any, **kwargs: Any) -> None:
            error = (exc_info or sys.exc_info())[1]
            if error is not None and reporter.quiet:
                reporter.passed(error, phases.BATCH)
            original(self, exc_info, *args, **kwargs)

        return init

    data = getattr(getattr(torch, "utils", None), "data", None)
    patches.replace(
        getattr(getattr(data, "dataloader", None), "_BaseDataLoaderIter", None),
        "__next__",
        fetching,
    )
    patches.replace(
        getattr(getattr(torch, "_utils", None), "ExceptionWrapper", None), "__init__", passing_on
    )


def _resume_from(module: Any, checkpoint: str | None) -> None:
    """Make the first call of `Trainer.train` resume from a checkpoint unless it names one.

    Scripts that call `trainer.train()` accept `--resume_from_checkpoint` and ignore it. This is the
    only thing changed in the job; it stays when the monitor is disabled.
    """
    trainer: Any = getattr(module, "Trainer", None)
    original, pending = getattr(trainer, "train", None), [checkpoint]
    if original is None or not checkpoint:
        return

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        ours = pending.pop() if pending else resume_from_checkpoint
        return original(self, resume_from_checkpoint or ours, *args, **kwargs)

    trainer.train = train
