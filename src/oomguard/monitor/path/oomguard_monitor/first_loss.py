"""The loss of the first optimizer step, and what shows that it is not a sum over samples."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Why the loss of a batch is not that of its parts.
IN_BATCH, BATCH_NORM, IGNORES_ITEMS = "in_batch", "batch_norm", "ignores_num_items"
_ITEMS = "num_items_in_batch"
#: Nodes of the graph that are looked at: the loss and the last layers, then layers for batch norm.
_LOSS_NODES, _MOST_NODES = 48, 4000
#: Two views of each sample, or some hard negatives of each.
_MOST_TIMES = 8
#: Operations between a matrix product and the weight that it multiplies with.
_OF_WEIGHT = ("TBackward", "Transpose", "Permute", "ToCopy", "AsStrided", "View")


class FirstLoss:
    """Sums what the backward passes of the first optimizer step begin with.

    The value is read once, after that step: nothing else waits for the device.
    """

    def __init__(self) -> None:
        self.couplings: set[str] = set()
        self._parts: list[Any] = []
        self._is_read = False

    def went_back(self, tensors: Any, rows: int | None) -> None:
        """Note the root of a backward pass over a micro batch of `rows`."""
        if self._is_read:
            return
        root = tensors[0] if isinstance(tensors, (list, tuple)) and tensors else tensors
        if not hasattr(root, "grad_fn") or root.numel() != 1:
            return
        if not self._parts:
            self.couplings |= couplings_of(root.grad_fn, rows)
        self._parts.append(root.detach().reshape(()))

    def forget(self) -> None:
        """Forget a step that is restarted."""
        self._parts = []

    def take(self) -> dict[str, object] | None:
        """Return value and couplings after the first step; None after later ones, or unseen."""
        is_seen, self._is_read = bool(self._parts) and not self._is_read, True
        if not is_seen:
            return None
        value = sum(float(part) for part in self._parts)
        self._parts = []
        is_finite = abs(value) < float("inf")  # False for nan
        return {"value": value if is_finite else None, "couplings": sorted(self.couplings)}


def couplings_of(root: Any, rows: int | None) -> set[str]:
    """Return what in the graph of a loss makes the samples of `rows` depend on each other.

    Shapes come from the nodes' own metadata: reading a saved tensor might recompute or copy it.
    """
    found: set[str] = set()
    seen, queue = {root}, deque([root])
    while queue and len(seen) < _MOST_NODES:
        node = queue.popleft()
        name = node.name()
        if "BatchNorm" in name:
            found.add(BATCH_NORM)
        if rows and len(seen) < _LOSS_NODES and _compares_rows(node, name, rows):
            found.add(IN_BATCH)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                queue.append(child)
    return found


def _compares_rows(node: Any, name: str, rows: int) -> bool:
    """Return whether it is a product of the batch's features with each other, not with a weight.

    A frozen weight is like features without a gradient: then only rows x rows counts.
    """
    if not name.startswith("MmBackward") or rows == 1:
        return False
    metadata = getattr(node, "_input_metadata", None)
    shape = tuple(metadata[0].shape) if metadata else ()
    children = [child for child, _ in node.next_functions]
    if any(_is_weight(child) for child in children):
        return False
    if None in children:
        return shape == (rows, rows)
    return bool(shape) and all(size in range(rows, _MOST_TIMES * rows + 1, rows) for size in shape)


def _is_weight(node: Any) -> bool:
    for _ in range(4):
        if node is None:
            return False
        name = node.name()
        if "AccumulateGrad" in name:
            return True
        if not any(one in name for one in _OF_WEIGHT):
            return False
        node = next((child for child, _ in node.next_functions), None)
    return False


def ignores_items(trainer: Any, base: Any, *, reached_base: bool) -> bool:
    """Return whether a Trainer's own compute_loss leaves out `num_items_in_batch`.

    The Trainer then neither divides the loss by the accumulation nor does the loss itself: a mean
    over each micro batch adds up to as many times the gradient. `reached_base` says that the
    Trainer's compute_loss was called with the number. Source: transformers 5.23.0, trainer.py,
    training_step.
    """
    own = type(trainer).compute_loss
    scales = getattr(trainer, "model_accepts_loss_kwargs", False)
    other = getattr(trainer, "compute_loss_func", None) is not None
    declared = getattr(trainer, "loss_is_scaled_for_ga", None) is not None
    if own is base or reached_base or not scales or other or declared:
        return False
    return not _uses_items(own)


def _uses_items(function: Any) -> bool:
    """Return whether it reads the number beyond passing it to the Trainer's own function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return True  # not known
    passed = {
        id(name)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "compute_loss"
        for name in ast.walk(call)
    }
    reads = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == _ITEMS)
    forwards = any(
        word.arg is None and id(word.value) not in passed and _is_varkw(tree, word.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for word in call.keywords
    )
    return forwards or any(id(node) not in passed for node in reads)


def _is_varkw(tree: ast.AST, value: ast.AST) -> bool:
    """Return whether a value is the function's own `**kwargs`, which may hold the number."""
    names = {
        node.args.kwarg.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
    }
    return isinstance(value, ast.Name) and value.id in names
