"""Resuming: a checkpoint, where a framework puts them, and what can resume from one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk, after `step` optimizer steps; `path` is absolute."""

    path: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a job puts its checkpoints.

    `folder` is absolute; `name` a regular expression for their names, whose group `step` is the
    number of optimizer steps. A checkpoint is whole when a file matches each of `needs`
    (globs inside it) and each file is undamaged.
    """

    folder: str
    name: str
    needs: tuple[str, ...]


class Mode(str, Enum):
    """What a relaunch keeps of the work done."""

    RESTART = "restart"  # nothing: from step 0
    WEIGHTS = "weights"  # the trained weights; optimizer, schedule and data order begin again
    FULL = "full"  # everything: weights, optimizer, schedule, step, data order


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How an attempt begins: from `checkpoint` or from nothing, and why not from more.

    `hide` says that checkpoints which must not be picked up lie where the job saves.
    """

    mode: Mode
    checkpoint: Checkpoint | None = None
    reason: str = ""
    hide: bool = False
