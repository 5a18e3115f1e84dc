"""What a setting decides: the fields that differ between two readings of a job; and its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from oomguard.adapters.settings.groups import SettingGroups
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job

#: Fields of a job that are neither in its plan nor in its memory settings.
_OF_JOB = (
    *("multimodal", "trained_embeddings", "output_dir", "device", "world", "compares_samples"),
    "group",
)


@dataclass(frozen=True)
class Example:
    """A setting at another value, beside the lines that it needs."""

    value: str
    given: str = ""
    surroundings: Mapping[str, Any] | None = None


def of_job(adapter: Any, job: Job) -> dict[str, object]:
    """Return every field that a setting may decide."""
    memory = adapter.memory_settings(job)
    return {
        **{f"memory.{one.name}": getattr(memory, one.name) for one in fields(MemorySettings)},
        **{one.name: getattr(job.asked, one.name) for one in fields(Plan)},
        **{name: getattr(job, name) for name in _OF_JOB},
        "method": adapter.training_method(job),
    }


def between(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Return the fields that differ."""
    return {name.removeprefix("memory.") for name in before if before[name] != after[name]}


def twice(groups: SettingGroups) -> list[str]:
    """Return the settings that are in more than one group."""
    return sorted(key for key, count in Counter(groups.listed()).items() if count > 1)
