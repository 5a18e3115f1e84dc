"""What is planned: a job, and the GPU that is named, of a size, or here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oomguard.cli.options import Stated
from oomguard.cli.prepare import Prepared, prepare
from oomguard.cli.starting_point import device_name, own_capacity
from oomguard.errors import UsageError
from oomguard.estimate.cards import CARDS, Card, card_named
from oomguard.job.training_job import Job
from oomguard.machine.gpus import Gpu
from oomguard.units import show_bytes

#: What `--gpu` takes for every GPU that is known.
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSource:
    """Where a job is read from: a config file or a command, and the options given beside it."""

    train: Path | None
    command: tuple[str, ...]
    given: Stated

    def on(self, gpus: int, *, like: Job | None = None) -> Prepared:
        """Read the job for a machine with this many GPUs; `like` is the same job, read before.

        Raises:
            UsageError: as `prepare` does.
        """
        return prepare(self.train, self.command, self.given, planned_gpus=gpus, like=like)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One GPU; `name` is None if only its size is known, then it is taken for a new one.

    `note` says where it comes from if neither --gpu nor --gpu-memory names it.
    """

    name: str | None
    device_bytes: int
    bfloat16: bool = True
    hopper: bool = False
    note: str | None = None

    @property
    def label(self) -> str:
        """Return the name, or the size where there is none."""
        return self.name or f"{show_bytes(self.device_bytes)} GPU"


def catalogue() -> tuple[Target, ...]:
    """Return every GPU that is known."""
    return tuple(map(_target, CARDS))


def _target(card: Card) -> Target:
    return Target(
        name=card.name,
        device_bytes=card.usable_bytes,
        bfloat16=card.bfloat16,
        hopper=card.hopper,
    )


def named_target(gpu: str | None, gpu_memory: int | None) -> Target | None:
    """Return the GPU that the command line names, None if it names none.

    Raises:
        UsageError: if it names two, or one that is not known.
    """
    if gpu is not None and gpu_memory is not None:
        raise UsageError(
            "pass --gpu or --gpu-memory, not both",
            next_step="--gpu-memory is for a GPU whose name oomguard does not know.",
        )
    if gpu_memory is not None:
        return Target(name=None, device_bytes=gpu_memory)
    if gpu is None:
        return None
    return _target(card_named(gpu))


def target_here(prepared: Prepared, here: Sequence[Gpu]) -> Target | None:
    """Return the limit in the `oomguard:` block, else the smallest GPU here; None for neither."""
    capacity = own_capacity(prepared, tuple(here))
    if capacity is None:
        return None
    limit = prepared.limits.gpu_memory_bytes
    source = "gpu_memory in the oomguard: block" if limit else f"the {len(here)} GPUs here"
    if not limit and len(here) == 1:
        source = "the GPU here"
    return Target(
        name=device_name(tuple(here)),
        device_bytes=capacity.device_bytes,
        bfloat16=all(one.bfloat16 for one in here),
        hopper=any(one.hopper for one in here),
        note=f"planned for {source}; --gpu all compares every GPU that is known",
    )
