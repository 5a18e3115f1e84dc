"""A change of plan as its framework spells it: the settings that get new values."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from oomguard.adapters.contract import Adapter
from oomguard.configfile.document import Source
from oomguard.configfile.flags import is_flag
from oomguard.configfile.values import shown
from oomguard.job.command import Command
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Strategy
from oomguard.redact import redact_config

#: Where `launch` would write its files; their paths are shown without it.
_FOLDER = "/attempt"


def spelled(strategy: Strategy, adapter: Adapter, job: Job) -> list[str]:
    """Return the settings that a strategy gives new values to in a job; none if it is refused."""
    changed = strategy.applied(job, job.asked)
    if not isinstance(changed, Plan):
        return []
    plan = adapter.normalize(job, changed)
    if adapter.refusal(job, plan) is not None:
        return []
    return settings_of(plan, adapter, job)


def settings_of(plan: Plan, adapter: Adapter, job: Job) -> list[str]:
    """Return the settings that get new values in a plan that the framework takes."""
    before, after = (adapter.write(job, x, _FOLDER) for x in (job.asked, plan))
    found = [
        *_new_values(before, after), *_new_words(before.argv, after.argv), *_new(before, after)
    ]  # fmt: skip
    if plan.token_bound != job.asked.token_bound:
        found.append(f"no setting: oomguard divides batches of more than {plan.token_bound} tokens")
    return found


def _new_values(before: Command, after: Command) -> Iterator[str]:
    """Yield `key: value` for what the config says otherwise; dots go into mappings."""
    old, new = _values(before), _values(after)
    for key, value in new.items():
        if old.get(key) != value:
            written = isinstance(value, str) and value.startswith(_FOLDER)
            name = f"{posixpath.basename(str(value))} (a file that launch writes)"
            yield f"{key}: {name if written else shown(value)}"
    yield from (f"without {key}" for key in old if key not in new)


def _values(command: Command) -> dict[str, object]:
    text = next((file.text for file in command.files if file.path == command.config), None)
    if text is None or command.config is None:
        return {}
    source = Source(path=command.config, text=redact_config(text))
    return dict(_flat(source.document.values))


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _new_words(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[str]:
    """Yield the flags, with their values, and the `key=value` words that only the second has."""
    known = set(_settings(before))
    yield from (words for words in _settings(after) if words not in known)


def _settings(argv: tuple[str, ...]) -> Iterator[str]:
    words: list[str] = []
    for word in argv:
        if is_flag(word) or "=" in word:
            yield from [" ".join(words)] if words else []
            words = [word]
        elif words:
            words.append(word.replace(f"{_FOLDER}/", ""))
    yield from [" ".join(words)] if words else []


def _new(before: Command, after: Command) -> Iterator[str]:
    """Yield `NAME=value` for each variable that is set otherwise."""
    for name, value in after.env.items():
        if before.env.get(name) != value:
            yield f"{name}={value}"
