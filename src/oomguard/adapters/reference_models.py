"""Reference models that are not the trained one."""

from __future__ import annotations

from oomguard.adapters.fields import Key
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import MemorySettings, Reference
from oomguard.job.unmodelled import Direction, Unmodelled


def other_reference(
    settings: Settings, key: Key[str | None], found: MemorySettings
) -> tuple[Unmodelled, ...]:
    """Return that a reference model of another name is counted as large as the trained one."""
    objective, name = found.objective, key.of(settings)
    compared = objective is not None and objective.reference is not Reference.NONE
    if not compared or name is None or name == found.model:
        return ()
    return (
        Unmodelled(
            key=key.name,
            effect=f"{name} is counted as large as the trained model",
            direction=Direction.EITHER,
            line=settings.origin(key.name).line,
        ),
    )
