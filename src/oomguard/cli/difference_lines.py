"""A difference between two runs as a line of text."""

from __future__ import annotations

from oomguard.job.plan import Value
from oomguard.run.compare import Difference, Weight
from oomguard.units import show_bytes

_BYTES = "_bytes"


def difference_line(one: Difference) -> str:
    """Return `name before -> after`; sizes in GiB."""
    is_size = one.name.endswith(_BYTES)
    name = one.name.removesuffix(_BYTES).replace("_", " ") if is_size else one.name
    return f"{name} {_shown(one.before, is_size)} -> {_shown(one.after, is_size)}"


_MEANINGS = {
    Weight.RESULT: "may change the result",
    Weight.MEMORY: "may change how much memory it takes, or whether it fits",
    Weight.LITTLE: "not expected to matter",
}


def meaning(one: Difference) -> str:
    """Return what a difference means for a run that is repeated; empty for a result."""
    return _MEANINGS[one.weight] if one.weight else ""


def _shown(value: Value, is_size: bool) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return show_bytes(value) if is_size and isinstance(value, int) else str(value)
