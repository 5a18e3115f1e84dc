"""Keep what a trainer counts at each call of its loss: a repeated or divided step counts once.

Source: TRL 1.16 (`_metrics`, `_total_train_tokens`) and 0.24 (also `_stored_metrics`), ms-swift 4.6
(`custom_metrics`, each of which adds up values and their number), axolotl 0.19 (`state.tokens`).
The Trainer itself counts outside of the training step.
"""

from __future__ import annotations

import random
import sys
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

_METRICS = ("_metrics", "_stored_metrics")
_COUNTERS = ("_total_train_tokens",)
_SUMS = "custom_metrics"


class Accounts:
    """The metrics and counters of a trainer at one moment."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._entries = list(_listed(trainer))
        self._lists = {id(kept): (kept, len(kept)) for _, _, kept in self._entries}
        self._counters = {
            name: getattr(trainer, name) for name in _COUNTERS if hasattr(trainer, name)
        }
        self._tokens = _tokens_of(trainer)
        self._sums = [(holder, key, dict(vars(one))) for holder, key, one in _summing(trainer)]

    def restore(self) -> None:
        """Undo what was counted since."""
        for name, value in self._counters.items():
            setattr(self._trainer, name, value)
        for holder, key, _ in list(_listed(self._trainer)):
            del holder[key]
        for holder, key, kept in self._entries:
            del kept[self._lists[id(kept)][1] :]
            holder[key] = kept
        known = {(id(holder), key): values for holder, key, values in self._sums}
        for holder, key, one in list(_summing(self._trainer)):
            if (id(holder), key) in known:
                vars(one).update(known[id(holder), key])
            else:
                del holder[key]
        if self._tokens is not None:
            self._trainer.state.tokens = dict(self._tokens)
        elif _tokens_of(self._trainer) is not None:
            del self._trainer.state.tokens

    def join(self, weights: Sequence[float], tokens: int) -> None:
        """Replace the values that each part of a batch has added by their weighted mean.

        A batch counts the `tokens` that it has with its padding, which its parts may have left out.
        """
        counted = _tokens_of(self._trainer)
        if counted is not None:
            before = (self._tokens or {}).get("total", counted["total"] * 0)
            if bool(counted["total"] != before):
                self._trainer.state.tokens = {**counted, "total": before + tokens}
        total = sum(weights) or 1.0
        for _, _, kept in _listed(self._trainer):
            before = self._lists.get(id(kept), (kept, 0))[1]
            added = kept[before:]
            if len(added) == len(weights):
                joined = sum(value * weight for value, weight in zip(added, weights))  # noqa: B905 - 3.8
                kept[before:] = [joined / total]


class Gradients:
    """The gradients of a model, whose parameters are collected once: a walk takes milliseconds.

    Nothing here keeps a parameter alive.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._parameters = [weakref.ref(one) for one in model.parameters()]

    def are_of(self, model: Any) -> bool:
        """Return whether they are those of this model."""
        return self._model() is model

    def are_there(self) -> bool:
        """Return whether any parameter that is trained has one."""
        for found in self._parameters:
            one = found()
            if one is not None and one.grad is not None and one.requires_grad:
                return True
        return False

    def drop(self) -> None:
        """Drop them.

        Raises:
            RuntimeError: if there are some of parameters that the model did not have before.
        """
        model: Any = self._model()
        known = {id(found()) for found in self._parameters}
        trained = [one for one in model.parameters() if one.requires_grad]
        if any(one.grad is not None and id(one) not in known for one in trained):
            raise RuntimeError("the model has other parameters than at first")
        for one in trained:
            one.grad = None


def _listed(trainer: Any) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield each list of a trainer's metrics with the mapping and the key that hold it."""
    for name in _METRICS:
        yield from _within(getattr(trainer, name, None))


def _within(holder: Any) -> Iterator[tuple[Any, Any, list[Any]]]:
    if not isinstance(holder, dict):
        return
    for key, value in list(holder.items()):
        if isinstance(value, list):
            yield holder, key, value
        else:
            yield from _within(value)


def _tokens_of(trainer: Any) -> dict[str, Any] | None:
    """Return how many tokens a trainer has counted so far: trained ones, and all with padding."""
    counted = getattr(getattr(trainer, "state", None), "tokens", None)
    return dict(counted) if isinstance(counted, dict) and "total" in counted else None


def _summing(trainer: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each metric that adds up numbers, with the mapping and the key that hold it."""
    modes = getattr(trainer, _SUMS, None)
    for holder in modes.values() if isinstance(modes, dict) else ():
        if isinstance(holder, dict):
            yield from ((holder, key, one) for key, one in list(holder.items()))


def random_state(torch: Any) -> Callable[[], None]:
    """Return a function that sets the generators to the state in which they are now."""
    numpy = sys.modules.get("numpy")
    host, python = torch.get_rng_state(), random.getstate()
    cuda: Any = getattr(torch, "cuda", None)
    devices = cuda.get_rng_state_all() if cuda is not None and cuda.is_initialized() else None
    of_numpy = numpy.random.get_state() if numpy is not None else None

    def restore() -> None:
        torch.set_rng_state(host)
        random.setstate(python)
        if devices is not None:
            cuda.set_rng_state_all(devices)
        if numpy is not None:
            numpy.random.set_state(of_numpy)

    return restore
