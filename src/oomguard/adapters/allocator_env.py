"""The CUDA caching allocator's settings: environment variables, whatever the framework."""

from __future__ import annotations

from collections.abc import Mapping

from oomguard.job.plan import Allocator

#: The first is what torch before 2.9 reads, and later ones still read.
NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_EXPANDABLE = "expandable_segments"


def allocator_of(env: Mapping[str, str]) -> Allocator:
    """Return the allocator settings of an environment."""
    options = ",".join(env.get(name, "") for name in NAMES).split(",")
    on = any(option.strip() == f"{_EXPANDABLE}:True" for option in options)
    return Allocator.EXPANDABLE if on else Allocator.DEFAULT


def with_allocator(env: Mapping[str, str], wanted: Allocator) -> dict[str, str]:
    """Return an environment with the allocator's choice; its other options stay."""
    result = dict(env)
    for name in NAMES:
        if name in result or (name == NAMES[0] and NAMES[1] not in result):
            result[name] = _edited(result.get(name, ""), wanted)
    return result


def _edited(options: str, wanted: Allocator) -> str:
    kept = [o for o in options.split(",") if o.strip() and not o.strip().startswith(_EXPANDABLE)]
    if wanted is Allocator.EXPANDABLE:
        kept.append(f"{_EXPANDABLE}:True")
    return ",".join(kept)
