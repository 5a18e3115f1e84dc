"""Call back right after a named module is imported, at no cost for all others."""

from __future__ import annotations

import sys
from _thread import get_ident  # `threading` would be loaded into every process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Callback = Callable[[ModuleType], None]


class Finder:
    """First on `sys.meta_path`: finds named modules with the other finders, wraps their loaders.

    For `expected` modules a callback may be added while they are imported.
    """

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self._callbacks: dict[str, Callback] = {}
        self._expected = frozenset(expected)
        self._searching: set[tuple[str, int]] = set()

    def install(self) -> None:
        """Become the first finder."""
        sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        """Remove this finder; callbacks not yet called are dropped."""
        self._callbacks.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def on_import(self, name: str, callback: Callback) -> None:
        """Call `callback` once with module `name`, at once if it is imported already."""
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is not None and not getattr(spec, "_initializing", False):
            callback(module)
        else:
            self._callbacks[name] = callback

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find a module that has a callback with the other finders, and wrap its loader."""
        if fullname not in self._callbacks and fullname not in self._expected:
            return None
        search = (fullname, get_ident())
        if search in self._searching:  # another finder like this one asks all others too
            return None
        self._searching.add(search)
        try:
            spec = self._find(fullname, path, target)
        finally:
            self._searching.discard(search)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _CallingLoader(spec.loader, self)  # type: ignore[assignment]
        return spec

    def _find(self, *wanted: Any) -> ModuleSpec | None:
        for finder in [other for other in sys.meta_path if other is not self]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(*wanted) if find else None
            if spec is not None:
                return spec
        return None

    def imported(self, module: ModuleType) -> None:
        """Call back once; an exception in it must not fail the import."""
        callback = self._callbacks.pop(module.__name__, None)
        if callback is None:
            return
        try:
            callback(module)
        except Exception:  # noqa: BLE001 - our fault must never break the job
            self.uninstall()


def is_waiting() -> bool:
    """Return whether one of our finders is installed."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


class _CallingLoader:
    """The module's loader that also calls back; removed once the module is executed."""

    def __init__(self, loader: Any, finder: Finder) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with its own loader."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with its own loader, then call back."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.imported(module)
