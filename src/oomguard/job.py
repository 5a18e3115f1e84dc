"""`Job`: what the user asked for, before oomguard changed anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from oomguard.plan import Plan


class Device(str, Enum):
    """Where the job computes. On a CPU job the host's memory is the device's memory."""

    CUDA = "cuda"
    CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A config file of the job as the user wrote it; `path` is absolute."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The data-parallel processes of the job."""

    nodes: int = 1
    per_node: int = 1

    @property
    def size(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job as the user would start it by hand.

    `argv` is the whole command, `config` the file in it that the adapter edits (None where
    every setting stands in `argv`), `env` what the user asked to set for the job. `python` is
    the interpreter that will run the framework; `packages` are those of the packages that
    rungs may need which that interpreter can import. `asked` is the plan in the user's own
    settings, with the framework's defaults filled in. `output_dir` is where checkpoints go.
    """

    framework: str
    argv: tuple[str, ...]
    cwd: str
    config: Source | None
    asked: Plan
    world: World = World()
    device: Device = Device.CUDA
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"
    packages: frozenset[str] = frozenset()
    multimodal: bool = False
    output_dir: str | None = None

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks: the invariant of every walk."""
        return self.asked.rank_batch * self.world.size
