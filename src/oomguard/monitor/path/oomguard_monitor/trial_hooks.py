"""A probe: batches as long as the longest of the data, and a normal exit after a few steps."""

from __future__ import annotations

import contextlib
import functools

from . import phases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .imports import Finder
    from .install import Function, Patches

#: Names of the tokens of a batch, rows x tokens: transformers and LitGPT, torchtune.
_IDS = ("input_ids", "tokens")
#: Value of an added position, if it does not repeat the last one of the row.
_FILL = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
_POSITIONS = ("position_ids", "input_pos", "cache_position")
_LABELS, _MASK, _IGNORED = "labels", "attention_mask", -100
_ROWS = 2


class ProbeHook:
    """Lengthens each training batch to `tokens`, and ends the job after `steps` steps.

    `longest` is the longest row so far. With `tokens` 0 batches stay as they are.
    """

    def __init__(self, steps: int, tokens: int) -> None:
        self.steps, self.tokens, self.longest = steps, tokens, 0

    def take(self, batch: Any, torch: Any) -> None:
        """Lengthen a batch in place; one of an unknown shape stays as it is."""
        name = next((n for n in _IDS if getattr(_item(batch, n), "ndim", 0) == _ROWS), None)
        if name is None:
            return
        ids = batch[name]
        now = int(ids.shape[1])
        if 0 < now < self.tokens:
            _lengthen(batch, name, self.tokens - now, torch)
        self.longest = max(self.longest, int(batch[name].shape[1]))

    def limit(self, tokens: int) -> None:
        """Lower `tokens` to what the model accepts: LitGPT's is the longest sample of its data."""
        self.tokens = min(self.tokens, tokens)


def probe_from(environ: Mapping[str, str]) -> ProbeHook | None:
    """Return what the environment requests, None if this launch is not a probe."""
    steps = environ.get("OOMGUARD_PROBE_STEPS", "")
    return ProbeHook(int(steps), int(environ.get("OOMGUARD_PROBE_LENGTH") or 0)) if steps else None


def hook_batches(torch: Any, finder: Finder, patches: Patches, probe: ProbeHook) -> None:
    """Lengthen batches where they are fetched, before their shapes are noted."""
    reporter = patches.reporter

    def fetching(original: Function) -> Function:
        @functools.wraps(original)
        def fetch(*args: Any, **kwargs: Any) -> Any:
            batch = original(*args, **kwargs)
            if reporter.state.phase not in phases.ENCLOSING:
                with contextlib.suppress(Exception):  # `longest` shows that it failed
                    probe.take(batch, torch)
            return batch

        return fetch

    data = getattr(getattr(torch, "utils", None), "data", None)
    loader = getattr(data, "dataloader", None)
    patches.replace(getattr(loader, "_BaseDataLoaderIter", None), "__next__", fetching)

    def litgpt_imported(module: Any) -> None:
        patches.replace(module.GPT, "max_seq_length", lambda before: _limiting(before, probe))

    finder.on_import("litgpt.model", litgpt_imported)


def hook_end(torch: Any, patches: Patches, probe: ProbeHook) -> None:
    """Exit after the last step, once it is counted and reported."""
    reporter = patches.reporter

    def stepping(original: Function) -> Function:
        @functools.wraps(original)
        def profile_hook_step(step: Function) -> Function:
            hooked = original(step)

            @functools.wraps(hooked)
            def last(*args: Any, **kwargs: Any) -> Any:
                result = hooked(*args, **kwargs)
                if reporter.state.step >= probe.steps:
                    reporter.probed(probe.tokens, probe.longest)
                    raise SystemExit(0)
                return result

            return last

        return profile_hook_step

    patches.replace(
        getattr(getattr(torch, "optim", None), "Optimizer", None), "profile_hook_step", stepping
    )


def _limiting(before: Any, probe: ProbeHook) -> Any:
    def set_length(model: Any, tokens: int) -> None:
        if before.fset is not None:
            before.fset(model, tokens)
        probe.limit(int(tokens))

    return property(before.fget, set_length, before.fdel, before.__doc__)


def _lengthen(batch: Any, name: str, more: int, torch: Any) -> None:
    """Add positions like any other: attended to, with a label, of no image or sound.

    If rows were padded, samples differ in length; the longest batch then has a mask too.
    """
    ids = batch[name]
    token = _token(ids, _item(batch, _LABELS))
    padded = _item(batch, _MASK) is not None and ids.shape[0] > 1
    longer = {}
    for other, value in list(batch.items()):
        axis = _axis(other, value, ids)
        if axis is None:
            continue
        if other in _POSITIONS:
            added = _count_on(value, axis, more, torch)
        else:
            last = value.narrow(axis, value.shape[axis] - 1, 1)
            sizes = [more if at == axis else size for at, size in enumerate(value.shape)]
            added = last.expand(sizes).clone()
            fill = token if other in (name, _LABELS) else _FILL.get(str(other))
            if fill is not None:
                added.fill_(fill)
        longer[other] = torch.cat([value, added], dim=axis)
    if padded:
        _pad_last(longer)
    for other, value in longer.items():
        batch[other] = value


def _axis(name: object, value: Any, ids: Any) -> int | None:
    """Return the axis along which a tensor has one number per token, None if it has none."""
    shape = tuple(getattr(value, "shape", ()))
    if name in _POSITIONS and shape[-1:] == ids.shape[1:]:
        return len(shape) - 1
    whole = hasattr(value, "is_floating_point") and not value.is_floating_point()
    return 1 if shape[:_ROWS] == tuple(ids.shape) and (whole or len(shape) == _ROWS) else None


def _token(ids: Any, labels: Any) -> int:
    """Return a token of an answer, which is neither a media marker nor padding."""
    if labels is not None and tuple(labels.shape) == tuple(ids.shape):
        answers = ids[labels != _IGNORED]
        if answers.numel():
            return int(answers[0])
    return int(ids[0, -1])


def _count_on(value: Any, axis: int, more: int, torch: Any) -> Any:
    last = value.narrow(axis, value.shape[axis] - 1, 1)
    return last + torch.arange(1, more + 1, dtype=value.dtype, device=value.device)


def _pad_last(longer: dict[Any, Any]) -> None:
    """Mask the last position of all rows except the first."""
    longer[_MASK][1:, -1] = 0
    if _LABELS in longer:
        longer[_LABELS][1:, -1] = _IGNORED


def _item(batch: Any, name: str) -> Any:
    if not hasattr(batch, "items"):
        return None
    return batch.get(name) if hasattr(batch, "get") else None
