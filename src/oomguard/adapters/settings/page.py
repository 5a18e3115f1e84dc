"""The tables of docs/settings.md."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.adapters.config_adapter import ConfigAdapter
from oomguard.adapters.effects import Effect
from oomguard.adapters.registry import ADAPTERS
from oomguard.adapters.settings.accelerate_settings import ACCELERATE
from oomguard.adapters.settings.deepspeed_settings import DEEPSPEED
from oomguard.adapters.settings.fsdp_settings import FSDP
from oomguard.adapters.settings.groups import SettingGroups

#: Files that several frameworks read.
_SHARED = {
    "DeepSpeed's config": DEEPSPEED,
    "accelerate's config": ACCELERATE,
    "FSDP's config (`fsdp_config`)": FSDP,
}


def settings_tables() -> str:
    """Return the tables of every framework whose settings are listed, as Markdown."""
    found = (adapter.tables() for adapter in ADAPTERS if isinstance(adapter, ConfigAdapter))
    return "\n".join(
        line
        for tables in (*found, _SHARED)
        for title, groups in tables.items()
        for line in _of(title, groups)
    )


def _of(title: str, groups: SettingGroups) -> Iterator[str]:
    """Yield the section of one framework."""
    missing = {one.key for one in groups.unmodelled}
    counts = (len(groups.read), len(missing), len(groups.names) - len(groups.read) - len(missing))
    yield f"## {title}\n"
    yield (
        f"{len(groups.names)} settings: {counts[0]} read, {counts[1]} not modelled, {counts[2]} "
        "without an effect of their own.\n"
    )
    yield "### Read\n"
    yield "| setting | decides | not included |\n|---|---|---|"
    partly = {one.key: _effect(one) for one in groups.partly}
    for key, names in sorted(groups.read.items()):
        yield f"| `{key}` | {_code(names)} | {partly.get(key, '')} |"
    yield "\n### Not modelled\n"
    yield "| setting | GPU or host memory | what is missing | its details |\n|---|---|---|---|"
    for one in sorted(groups.unmodelled, key=lambda one: one.key):
        details = _code(groups.details.get(one.key, ""))
        memory = f"{one.memory.value}: {one.direction.value}"
        yield f"| `{one.key}` | {memory} | {one.effect} | {details} |"
    others = {key: names for key, names in groups.details.items() if key not in missing}
    for key, names in sorted(others.items()):
        yield f"| `{key}` |  | named by the method or the tuning that has them | {_code(names)} |"
    yield "\n### No effect\n"
    yield "| why | settings |\n|---|---|"
    for reason, names in sorted(groups.no_effect.items()):
        yield f"| {reason} | {_code(names)} |"
    yield ""


def _effect(one: Effect) -> str:
    return f"{one.effect} ({one.memory.value}: {one.direction.value})"


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names.split()))
