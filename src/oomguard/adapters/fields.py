"""Keys and bindings: how one framework spells the fields of a plan. Adapters are tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Generic, TypeVar

from oomguard.configfile.layered import Settings
from oomguard.configfile.values import real, shown, truth, whole, word
from oomguard.errors import ConfigError
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[T_co]):
    """One setting of a framework; `default` applies if it is null or not set.

    `former` are the names that earlier versions have for it: a job keeps the one that it states.
    """

    name: str
    decode: Callable[[object], T_co]
    default: T_co
    former: tuple[str, ...] = ()

    def in_job(self, settings: Settings) -> str:
        """Return the name that a job states the setting by."""
        names = (self.name, *self.former)
        return next((name for name in names if settings.has(name)), self.name)

    def of(self, settings: Settings) -> T_co:
        """Read the setting.

        Raises:
            ConfigError: for a value of the wrong type, with the place where it is set.
        """
        name = self.in_job(settings)
        value = settings.get(name)
        if value is None:
            return self.default
        try:
            return self.decode(value)
        except ValueError as error:
            raise ConfigError(str(error), where=settings.origin(name)) from error


#: What each key must hold.
Edits = Mapping[Key[object], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One field of the plan.

    `read` returns its value under some settings, None if they have no such choice. `edits` returns
    the value that each key must have for a wanted value; None if no key can hold it.
    """

    field: str
    read: Callable[[Settings], object]
    edits: Callable[[Settings, object], Edits | None]


@dataclass(frozen=True, slots=True)
class Bindings:
    """All the bindings of one framework."""

    bindings: tuple[Binding, ...]

    def read(self, settings: Settings) -> dict[str, object]:
        """Read every field that the settings decide."""
        return {binding.field: binding.read(settings) for binding in self.bindings}

    def apply(self, settings: Settings, job: Job, plan: Plan) -> Settings:
        """Edit the keys whose value has to change, and no others."""
        for binding in self.bindings:
            wanted = getattr(plan, binding.field)
            if wanted == getattr(job.asked, binding.field):
                continue
            for key, value in (binding.edits(settings, wanted) or {}).items():
                if key.of(settings) != value:
                    settings = settings.set(key.in_job(settings), value)
        return settings

    def unwritable(
        self, settings: Settings, job: Job, plan: Plan, *, elsewhere: Iterable[str] = ()
    ) -> str | None:
        """Return which changed field no key can hold; `elsewhere` are those that no key has to."""
        known = {binding.field: binding for binding in self.bindings}
        for name in (field.name for field in fields(Plan)):
            asked, wanted = getattr(job.asked, name), getattr(plan, name)
            if asked == wanted or name in elsewhere:
                continue
            if asked is None or name not in known or known[name].edits(settings, wanted) is None:
                return f"this job has no setting for {name} {shown(wanted)}"
        return None


def direct(field: str, key: Key[T_co]) -> Binding:
    """Return the binding of a field that is one key with the same values."""
    return Binding(field=field, read=key.of, edits=lambda _, value: {key: value})


def always(field: str, value: object) -> Binding:
    """Return the binding of a field that has one value whatever the settings."""
    return Binding(field=field, read=lambda _: value, edits=lambda _, __: None)


def stated(field: str, *keys: Key[T_co]) -> Binding:
    """Return the binding of a field that exists only where the settings state one of these keys."""

    def first(settings: Settings) -> Key[T_co] | None:
        return next((key for key in keys if settings.has(key.name)), None)

    def read(settings: Settings) -> object:
        key = first(settings)
        return key.of(settings) if key else None

    def edits(settings: Settings, value: object) -> Edits | None:
        key = first(settings)
        return {key: value} if key else None

    return Binding(field=field, read=read, edits=edits)


def choice(field: str, key: Key[T_co], values: Mapping[T_co, Enum]) -> Binding:
    """Return the binding of a field that is one key, by the framework's names for its values."""

    def edits(_: Settings, value: object) -> Edits | None:
        own = [own for own, noun in values.items() if noun is value]
        return {key: own[0]} if own else None

    return Binding(field=field, read=lambda settings: values.get(key.of(settings)), edits=edits)


def switch(field: str, key: Key[bool], *, on: object, off: object) -> Binding:
    """Return the binding of a field with two values that is one true-or-false key."""
    return Binding(
        field=field,
        read=lambda settings: on if key.of(settings) else off,
        edits=lambda _, value: {key: value == on} if value in (on, off) else None,
    )


def number(name: str, default: int) -> Key[int]:
    """Make a key that holds an integer of at least 1."""
    return Key(name=name, decode=whole, default=default)


def maybe_number(name: str) -> Key[int | None]:
    """Make a key that holds an integer of at least 1, or nothing."""
    return Key(name=name, decode=whole, default=None)


def fraction(name: str, default: float) -> Key[float]:
    """Make a key that holds a number of at least 0."""
    return Key(name=name, decode=real, default=default)


def flag(name: str, *, default: bool = False) -> Key[bool]:
    """Make a key that holds true or false."""
    return Key(name=name, decode=truth, default=default)


def text(name: str, default: str, *, former: tuple[str, ...] = ()) -> Key[str]:
    """Make a key that holds a string."""
    return Key(name=name, decode=word, default=default, former=former)


def maybe_text(name: str) -> Key[str | None]:
    """Make a key that holds a string, or nothing."""
    return Key(name=name, decode=word, default=None)
