"""Run a step again on one rank of several while the others wait for no more than its gradients.

DistributedDataParallel exchanges gradients within the last backward pass of an optimizer step: a
pass that fails there cannot be repeated, because the others have received part of it. So passes
over batches that may not fit compute gradients without exchanging them, and once all of them have
passed, DistributedDataParallel exchanges the sums. What it exchanges, and in which order, is the
same either way: each rank decides for itself, and never more or less is exchanged than without us.

Source: torch 2.1 to 2.13, nn/parallel/distributed.py and csrc/distributed/c10d/reducer.cpp.
"""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    Taken = tuple[int, int, int, bool]

#: What is used of DistributedDataParallel.
_USED = (
    "no_sync", "reducer", "require_backward_grad_sync", "require_forward_param_sync",
    "find_unused_parameters", "_check_sync_bufs_pre_fwd", "_sync_buffers",
)  # fmt: skip
#: Kinds of training that leave its place, by the attribute that is set.
_OTHERWISE = {
    "static_graph": "a static graph exchanges gradients in its first backward pass",
    "_use_python_reducer": "torch.compile exchanges the gradients",
    "mixed_precision": "DistributedDataParallel casts parameters in the forward pass",
    "_delay_all_reduce_params": "some gradients are exchanged outside of the backward pass",
    "buffer_hook": "a hook exchanges buffers",
}
#: Whose loss is computed without asking other ranks: repeating it on one of them is safe.
#: Source: `compute_loss` of transformers 4.51 to 5.23 and LLaMA-Factory 0.9.5. TRL 1.16 gathers
#: its metrics there.
_ALONE = frozenset(
    {
        "transformers.trainer",
        "transformers.trainer_seq2seq",
        "llamafactory.train.pt.trainer",
        "llamafactory.train.sft.trainer",
    }
)
#: Whose models do not ask other ranks in the forward pass.
_MODELS = ("transformers", "peft", "transformers_modules")


def is_exchanging(model: Any) -> bool:
    """Return whether a model is wrapped to exchange its gradients."""
    return type(model).__name__ == "DistributedDataParallel"


def unwrapped(model: Any) -> Any:
    """Return the model itself."""
    return model.module if is_exchanging(model) else model


def why_not_on_ranks(trainer: Any, model: Any) -> str | None:
    """Return why one of several ranks may not run a step again, None if it may."""
    return (
        why_not_exchanged(model)
        or _of_accelerator(trainer.accelerator)
        or _of_outputs(trainer, model)
    )


def why_not_exchanged(model: Any) -> str | None:
    """Return why gradients that were held back cannot be exchanged, None if they can."""
    if not is_exchanging(model):
        return f"several ranks train a {type(model).__name__}"
    for name in _USED:
        if not hasattr(model, name):
            return f"this DistributedDataParallel has no {name}"
    for name, reason in _OTHERWISE.items():
        if getattr(model, name, None):
            return reason
    if getattr(getattr(model, "_join_config", None), "enable", False):
        return "ranks may end their data at different steps"
    return None


def _of_accelerator(accelerator: Any) -> str | None:
    if getattr(accelerator, "parallelism_config", None) is not None:
        return "the model may be divided between the ranks"
    if accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False):
        return "gradients are exchanged after each micro batch"
    return None


def _of_outputs(trainer: Any, model: Any) -> str | None:
    """Return why a forward pass or a loss may wait for other ranks."""
    owner = next(one for one in type(trainer).__mro__ if "compute_loss" in vars(one))
    own = "compute_loss" in vars(trainer) or getattr(trainer, "compute_loss_func", None)
    if own or owner.__module__ not in _ALONE:
        return "the loss may be computed from other ranks' outputs"
    if type(unwrapped(model)).__module__.split(".")[0] not in _MODELS:
        return "the model may use other ranks' outputs"
    return None


def taken_by(batch: Any, *, accumulated: bool) -> Taken:
    """Return what the memory of a batch depends on, as far as its shapes show it.

    These are its tokens, the numbers that are not tokens, the widest row, and whether there are
    gradients already.
    """
    shapes = [tuple(one.shape) for one in _tensors(batch)]
    ids = getattr(batch, "get", lambda _: None)("input_ids")
    tokens = _product(tuple(getattr(ids, "shape", ())))
    width = max((shape[1] for shape in shapes if len(shape) > 1), default=0)
    return tokens, sum(map(_product, shapes)) - tokens, width, accumulated


class Passed:
    """The largest batches that went through a forward and a backward pass."""

    def __init__(self) -> None:
        self._largest: list[Taken] = []

    def add(self, taken: Taken) -> None:
        """Note a batch."""
        if not self.covers(taken):
            self._largest = [one for one in self._largest if not _covers(taken, one)] + [taken]

    def covers(self, taken: Taken) -> bool:
        """Return whether a batch that took at least as much has passed."""
        return any(_covers(one, taken) for one in self._largest)

    def forget(self) -> None:
        """Forget what passed with less in memory than from now on."""
        self._largest = []


class Exchange:
    """The gradients of one process, which nobody waits for.

    `held` says whether the pass that runs now has held them back.
    """

    held = False

    def is_of(self, model: Any) -> bool:
        """Return whether it is the exchange of this model."""
        return not is_exchanging(model)

    def begin(self) -> None:
        """Exchange what is exchanged before the first forward pass of an optimizer step."""

    def held_back(self) -> AbstractContextManager[Any]:
        """Compute gradients without exchanging them."""
        return contextlib.nullcontext()

    def is_due(self) -> bool:
        """Return whether the pass that runs now exchanges gradients."""
        return False

    def has_begun(self) -> bool:
        """Return whether a pass may have exchanged some of them already."""
        return False

    def finish(self) -> None:
        """Exchange all gradients that were held back."""


class RanksExchange(Exchange):
    """The gradients of one rank of DistributedDataParallel."""

    def __init__(self, model: Any, torch: Any) -> None:
        self._model, self._torch = model, torch

    def is_of(self, model: Any) -> bool:
        """Return whether it is the exchange of this model."""
        return self._model is model

    def begin(self) -> None:
        """Do what the first forward pass would do: a repeated one must not do it again."""
        self._model.reducer._rebuild_buckets()  # noqa: SLF001 - as `_pre_forward` does
        if self._model._check_sync_bufs_pre_fwd():  # noqa: SLF001 - as `_pre_forward` does
            self._model._sync_buffers()  # noqa: SLF001 - as `_pre_forward` does
        self._model.require_forward_param_sync = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Compute gradients without exchanging them."""
        self.held = True
        with self._model.no_sync():
            yield

    def is_due(self) -> bool:
        """Return whether the pass that runs now exchanges gradients."""
        return bool(self._model.require_backward_grad_sync)

    def has_begun(self) -> bool:
        """Return whether a forward pass has returned that ends in an exchange.

        `begin` cleared the flag, which such a forward pass sets when it returns.
        """
        return bool(self._model.require_forward_param_sync)

    def finish(self) -> None:
        """Make DistributedDataParallel exchange the sums, as at the end of a backward pass.

        Its hooks run when a parameter's gradient is complete. Here they run after an operation that
        leaves each gradient as it is, from the last parameter to the first.
        """
        model, keep = self._model, _kept(self._torch)
        finds_unused = bool(model.find_unused_parameters)
        total = self._torch.zeros((), requires_grad=True)
        for parameter in model.module.parameters():
            if parameter.requires_grad and (parameter.grad is not None or not finds_unused):
                total = keep(total, parameter)
        model.reducer.prepare_for_forward()
        model.reducer.prepare_for_backward([total] if finds_unused else [])
        total.backward()
        model.require_forward_param_sync = True


def _kept(torch: Any) -> Any:
    """Return an operation whose backward pass adds nothing to a parameter's gradient."""

    class Keep(torch.autograd.Function):  # type: ignore[misc]
        """Passes on its first input."""

        @staticmethod
        def forward(_: Any, total: Any, __: Any) -> Any:
            """Return the first input."""
            return total.clone()

        @staticmethod
        def backward(_: Any, gradient: Any) -> Any:
            """Return the gradient of the first input, and none of the second."""
            return gradient, None

    return Keep.apply


def _tensors(value: Any) -> Iterator[Any]:
    if hasattr(value, "shape"):
        yield value
    elif hasattr(value, "values"):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _product(shape: tuple[int, ...]) -> int:
    product = 1 if shape else 0
    for size in shape:
        product *= int(size)
    return product


def _covers(one: Taken, other: Taken) -> bool:
    return all(a >= b for a, b in zip(one, other))  # noqa: B905 - 3.8
