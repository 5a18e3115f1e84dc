"""Wrap functions of the job's libraries, and put the originals back."""

from __future__ import annotations

import functools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .reporter import Reporter

    Function = Callable[..., Any]
    Wrap = Callable[[Function], Function]


class Patches:
    """What was replaced, where and by what."""

    def __init__(self, reporter: Reporter, is_compiling: Callable[[], bool]) -> None:
        self.reporter, self.is_compiling = reporter, is_compiling
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Make the calls of `owner.name` a phase; nothing where there is no such function."""
        self.replace(owner, name, lambda original: self.watching(original, phase))

    def replace(self, owner: Any, name: str, wrap: Wrap) -> None:
        """Put `wrap(original)` in the place of `owner.name`, as the kind of method it is."""
        current = vars(owner).get(name) if owner is not None else None
        if current is None:
            return
        if isinstance(current, (staticmethod, classmethod)):
            new: Any = type(current)(wrap(current.__func__))
        else:
            new = wrap(current)
        setattr(owner, name, new)
        self._replaced.append((owner, name, current, new))

    def undo(self) -> None:
        """Put back what nobody else replaced since; what others kept only passes through."""
        while self._replaced:
            owner, name, before, ours = self._replaced.pop()
            if vars(owner).get(name) is ours:
                setattr(owner, name, before)

    def watching(self, original: Function, phase: str) -> Function:
        """Wrap a function whose calls are a phase.

        While torch.compile traces, `is_compiling` is a constant: the original is traced alone.
        """
        reporter, is_compiling = self.reporter, self.is_compiling

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if is_compiling() or reporter.aside:
                return original(*args, **kwargs)
            before = reporter.enter(phase)
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                reporter.failed(phase, before, error)
                raise
            reporter.leave(phase, before)
            return result

        return watched
