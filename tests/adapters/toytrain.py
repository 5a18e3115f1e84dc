"""The adapter that docs/adding-a-framework.md shows, loaded from the page."""

from __future__ import annotations

import re
from pathlib import Path

from oomguard.adapters.contract import Adapter

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-framework.md").read_text()


def shown() -> str:
    """Return the code of the page."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return text


def toytrain() -> Adapter:
    """Return the page's adapter."""
    namespace: dict[str, object] = {"__name__": "toytrain"}
    exec(compile(shown(), "adding-a-framework.md", "exec", dont_inherit=True), namespace)
    made = namespace["Toytrain"]
    assert isinstance(made, type)
    adapter = made()
    assert isinstance(adapter, Adapter)
    return adapter
