"""Settings that hold others: each key inside of a mapping is accounted for by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from oomguard.adapters.settings.groups import SettingGroups
from oomguard.job.unmodelled import Direction, Unmodelled

_NOT_READ = "what this key does to memory is not known here"


def unmodelled_inside(
    outer: str, values: Mapping[str, object], groups: SettingGroups
) -> Iterator[Unmodelled]:
    """Yield the keys inside of a mapping whose effect is not modelled, those of no group included.

    Keys of mappings within it are joined with dots; what is listed as a whole is not looked into.
    """
    known = groups.names
    for key, value in _leaves(values, known):
        if key not in known:
            name = f"{outer}.{key}"
            yield Unmodelled(key=name, effect=_NOT_READ, direction=Direction.EITHER)
            continue
        for one in groups.effects:
            if one.key == key and value != "auto" and one.when(value):
                yield Unmodelled(
                    key=f"{outer}.{key}",
                    effect=one.effect,
                    direction=one.direction,
                    memory=one.memory,
                )


def _leaves(
    values: Mapping[str, object], known: frozenset[str], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _leaves(value, known, f"{name}.")
        else:
            yield name, value
