"""Hook what counting needs: batches, training steps, backward passes and the optimizer."""

from __future__ import annotations

import functools

from . import phases
from .counting import FORWARD, LOADER, ROWS, TRAINER, Counter, ForwardRows, epoch_of
from .first_loss import IGNORES_ITEMS, FirstLoss, ignores_items

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .install import Function, Patches
    from .reporter import Reporter

#: A loop without a DataLoader is counted in its first steps only: the hook is on every module.
FORWARD_STEPS = 8


class Counting:
    """What the hooks share: the counter, the first loss, and what is reported of training."""

    def __init__(self, reporter: Reporter) -> None:
        self.counter, self.loss = Counter(), FirstLoss()
        self.stop_forward: Callable[[], None] = lambda: None
        self._reporter = reporter
        self._reported: dict[str, object] = {}
        self._depth = 0
        self._reached_base = False

    def stop(self) -> None:
        """Remove the hooks that are not patches."""
        self.stop_forward()

    def do(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Call a function of counting; a fault ends the counting, not the monitor or the job."""
        counter = self.counter
        try:
            return function(*args, **kwargs)
        except MemoryError:
            return None
        except Exception as error:  # noqa: BLE001 - it must never break the job
            counter.unclear = f"counting failed: {type(error).__name__}: {error}"[:200]
            return None

    def fetched(self, iterator: Any, batch: Any) -> None:
        """Count a fetched batch, and report the first one with the size of an epoch."""
        evaluating = self._reporter.state.phase in phases.ENCLOSING
        fetched = self.counter.fetched(iterator, batch, evaluating=evaluating)
        if fetched is None:
            return
        self.stop_forward()
        if "batches" not in self._reported:
            self._tell(
                samples=fetched.samples, short=fetched.short,
                counted_by=LOADER if fetched.samples is not None else ROWS,
                **epoch_of(iterator),
            )  # fmt: skip

    def begins(self, trainer: Any, batch: Any) -> None:
        """Count the batch of a training step that is not part of another one."""
        self._depth += 1
        if self._depth > 1:
            return
        self.stop_forward()
        self._reached_base = False
        self.counter.trains_on(batch)
        if "total_steps" not in self._reported:
            args, state = getattr(trainer, "args", None), getattr(trainer, "state", None)
            total = getattr(state, "max_steps", None)
            warmup = getattr(args, "get_warmup_steps", None)
            self._tell(
                counted_by=TRAINER,
                total_steps=total,
                warmup_steps=None if warmup is None or not total else int(warmup(total)),
                accumulation=getattr(args, "gradient_accumulation_steps", None),
            )

    def ends(self, trainer: Any, base: Any, items: Any) -> None:
        """Look at how the training step's loss was computed, once it has been."""
        is_first = self._depth == 1 and not self.counter.steps and items is not None
        if is_first and ignores_items(trainer, base, reached_base=self._reached_base):
            self.loss.couplings.add(IGNORES_ITEMS)

    def left(self) -> None:
        """Leave a training step, however it ended."""
        self._depth -= 1

    def reached(self, items: Any) -> None:
        """Note that the Trainer's own compute_loss was called with the number of items."""
        self._reached_base = self._reached_base or items is not None

    def went_back(self, tensors: Any) -> None:
        """Count a backward pass that is not part of another one."""
        self.loss.went_back(tensors, self.counter.rows)
        self.counter.went_back()

    def called(self, rows: int | None) -> None:
        """Report the rows of the first call of a model in a loop without a DataLoader."""
        if rows is not None and "samples" not in self._reported:
            self._tell(samples=rows, short=False, counted_by=FORWARD)

    def window(self) -> dict[str, object] | None:
        """Return what a step was made of."""
        window = self.counter.window()
        if self.counter.steps >= FORWARD_STEPS:
            self.stop_forward()
        return window

    def stepped(self, window: dict[str, object] | None) -> None:
        """Report the loss once the first step has been reported."""
        loss = self.loss.take()
        if loss is not None and window is not None:
            self._reporter.first_loss({**loss, "label_sum": window["label_sum"]})

    def _tell(self, **fields: object) -> None:
        self._reported.update(fields)
        self._reporter.training(self._reported)


def hook_counting(torch: Any, patches: Patches) -> Counting:
    """Install what counting needs of torch, before the hooks that report phases.

    Ours are the inner ones: a batch is noted after it was fetched, the optimizer before its step.
    """
    counting = Counting(patches.reporter)
    _hook_loader(torch, patches, counting)
    _hook_optimizer(torch, patches, counting)
    _hook_forward(torch, patches, counting)
    return counting


def _hook_loader(torch: Any, patches: Patches, counting: Counting) -> None:
    counter = counting.counter

    def drawing(original: Function) -> Function:
        @functools.wraps(original)
        def next_index(self: Any) -> Any:
            index = original(self)
            counting.do(counter.drew, self, index)
            return index

        return next_index

    def fetching(original: Function) -> Function:
        @functools.wraps(original)
        def fetch(self: Any) -> Any:
            try:
                batch = original(self)
            except StopIteration:
                if patches.reporter.state.phase not in phases.ENCLOSING:
                    counter.ended()
                raise
            counting.do(counting.fetched, self, batch)
            return batch

        return fetch

    data = getattr(getattr(torch, "utils", None), "data", None)
    iterator = getattr(getattr(data, "dataloader", None), "_BaseDataLoaderIter", None)
    patches.replace(iterator, "_next_index", drawing)
    patches.replace(iterator, "__next__", fetching)


def _hook_optimizer(torch: Any, patches: Patches, counting: Counting) -> None:
    """Note the optimizer, whose groups have the learning rate, before its step."""
    counter = counting.counter

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def profile_hook_step(step: Function) -> Function:
            hooked = original(step)

            @functools.wraps(hooked)
            def noted(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                counter.optimizer = optimizer
                return hooked(optimizer, *args, **kwargs)

            return noted

        return profile_hook_step

    optimizer = getattr(getattr(torch, "optim", None), "Optimizer", None)
    patches.replace(optimizer, "profile_hook_step", stepping)


def hook_backward(torch: Any, patches: Patches, counting: Counting) -> None:
    """Count backward passes, outside of the hook that reports the phase."""
    state, is_compiling = patches.reporter.state, patches.is_compiling

    def going(original: Function) -> Function:
        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            # A checkpointed part goes back within the backward pass of the whole.
            if not is_compiling() and state.phase != phases.BACKWARD:
                counting.do(counting.went_back, (*args, kwargs.get("tensors"))[0])
            return original(*args, **kwargs)

        return backward

    patches.replace(getattr(torch, "autograd", None), "backward", going)


def hook_trainer(trainer: Any, patches: Patches, counting: Counting) -> None:
    """Count the batches of the Trainer's training steps."""

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
            items = args[2] if len(args) > 2 else kwargs.get("num_items_in_batch")  # noqa: PLR2004
            counting.do(counting.begins, self, inputs)
            try:
                loss = original(self, *args, **kwargs)
                counting.do(counting.ends, self, vars(trainer).get("compute_loss"), items)
            finally:
                counting.left()
            return loss

        return training_step

    def computing(original: Function) -> Function:
        @functools.wraps(original)
        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            items = args[3] if len(args) > 3 else kwargs.get("num_items_in_batch")  # noqa: PLR2004
            counting.reached(items)
            return original(self, *args, **kwargs)

        return compute_loss

    patches.replace(trainer, "compute_loss", computing)
    patches.replace(trainer, "training_step", stepping)


def _hook_forward(torch: Any, patches: Patches, counting: Counting) -> None:
    """Note the rows that a model is called with, until a DataLoader or torch.compile is used.

    Compiled code would be compiled anew once the hook is gone.
    """
    modules = getattr(getattr(torch, "nn", None), "modules", None)
    module: Any = getattr(modules, "module", None)
    if not hasattr(module, "register_module_forward_pre_hook"):
        return
    rows = counting.counter.forward = ForwardRows()

    def before(called: Any, args: Any) -> None:
        found = counting.do(rows.enter, called, args, trains=torch.is_grad_enabled())
        counting.do(counting.called, found)

    def after(called: Any, _args: Any, output: Any) -> None:
        counting.do(rows.leave, called, output)

    handles = [
        module.register_module_forward_pre_hook(before),
        module.register_module_forward_hook(after, always_call=True),
    ]

    def stop() -> None:
        counting.stop_forward = lambda: None
        counting.counter.forward = None
        for handle in handles:
            handle.remove()

    def compiling(original: Function) -> Function:
        @functools.wraps(original)
        def compile_(*args: Any, **kwargs: Any) -> Any:
            counting.stop_forward()
            return original(*args, **kwargs)

        return compile_

    counting.stop_forward = stop
    patches.replace(torch, "compile", compiling)
    patches.replace(getattr(module, "Module", None), "compile", compiling)
