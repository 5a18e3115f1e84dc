"""Reads fit-reports of earlier schema versions. Pure.

| version | what changed                                                                    |
|---------|---------------------------------------------------------------------------------|
| 1       |                                                                                 |
| 2       | `surroundings`, four texts, became `environment`; `data`, `reproduction` and the |
|         | `loss` of an attempt came                                                       |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from oomguard.units import parse_size

SCHEMA_VERSION = 2
_GPU = re.compile(r"(?P<name>[^\s,][^,]*?) \((?P<size>[\d.]+ \w+)\)")


def upgraded(document: Mapping[str, object]) -> dict[str, object]:
    """Return a report of any version with the fields of the present one.

    Raises:
        msgspec.ValidationError: for a version that is newer than this oomguard.
    """
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise msgspec.ValidationError(
            f"its schema version is {version}, this oomguard reads up to {SCHEMA_VERSION}"
        )
    if version != 1:
        return dict(document)
    before = document.get("surroundings")
    texts = before if isinstance(before, dict) else {}
    return {**document, "environment": _environment({k: str(v) for k, v in texts.items()})}


def _environment(texts: Mapping[str, str]) -> dict[str, object]:
    cards = _GPU.finditer(texts.get("gpus", ""))
    return {
        "system": texts.get("system", ""),
        "host_memory_bytes": _size(texts.get("host_memory", "")),
        "gpus": [{"name": one["name"], "total_bytes": _size(one["size"]) or 0} for one in cards],
        "executable": texts.get("python", ""),
    }


def _size(text: str) -> int | None:
    try:
        return parse_size(text)
    except ValueError:
        return None
