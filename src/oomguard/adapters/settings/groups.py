"""`SettingGroups`: all settings of one framework, by what they do to memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oomguard.adapters.effects import Effect


def fields_of(table: Mapping[str, str]) -> dict[str, str]:
    """Return a table of names to keys, turned into one of each key to all its names."""
    found: dict[str, list[str]] = {}
    for name, keys in table.items():
        for key in keys.split():
            found.setdefault(key, []).append(name)
    return {key: " ".join(names) for key, names in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingGroups:
    """All settings of a framework, each in one group.

    Attributes:
        read: a key -> the fields that it decides, of `Plan`, `MemorySettings` or `Job`.
        no_effect: a reason -> the keys that change no memory for it.
        unmodelled: the effects of settings that nothing reads.
        partly: the effects that a setting in `read` has beside those fields.
        details: a key whose effect is not modelled -> the keys that shape that effect alone.
    """

    read: Mapping[str, str] = field(default_factory=dict)
    no_effect: Mapping[str, str] = field(default_factory=dict)
    unmodelled: tuple[Effect, ...] = ()
    partly: tuple[Effect, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Return every effect that is not modelled."""
        return (*self.unmodelled, *self.partly)

    @property
    def names(self) -> frozenset[str]:
        """Return all settings."""
        return frozenset(self.listed())

    def __or__(self, other: SettingGroups) -> SettingGroups:
        """Return the settings of both."""
        return SettingGroups(
            read=_joined(self.read, other.read),
            no_effect=_joined(self.no_effect, other.no_effect),
            unmodelled=(*self.unmodelled, *other.unmodelled),
            partly=(*self.partly, *other.partly),
            details=_joined(self.details, other.details),
        )

    def without(self, names: Iterable[str]) -> SettingGroups:
        """Return the settings that are not among `names`."""
        gone = frozenset(names)
        return SettingGroups(
            read={key: fields for key, fields in self.read.items() if key not in gone},
            no_effect=_kept(self.no_effect, gone),
            unmodelled=tuple(one for one in self.unmodelled if one.key not in gone),
            partly=tuple(one for one in self.partly if one.key not in gone),
            details=_kept(self.details, gone),
        )

    def only(self, names: Iterable[str]) -> SettingGroups:
        """Return the settings that are among `names`."""
        return self.without(self.names - frozenset(names))

    def listed(self) -> list[str]:
        """Return the settings of every group; one that is in two groups is there twice."""
        lists = (*self.no_effect.values(), *self.details.values())
        keys = [key for text in lists for key in text.split()]
        return [*self.read, *dict.fromkeys(one.key for one in self.unmodelled), *keys]


def _joined(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    names = dict.fromkeys((*one, *other))
    return {name: " ".join((one.get(name, ""), other.get(name, ""))).strip() for name in names}


def _kept(table: Mapping[str, str], gone: frozenset[str]) -> dict[str, str]:
    kept = {
        name: " ".join(key for key in keys.split() if key not in gone)
        for name, keys in table.items()
    }
    return {name: keys for name, keys in kept.items() if keys}
