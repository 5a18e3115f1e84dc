"""What a run was made of: the machine and its software, the code, the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oomguard.job.training_job import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """A GPU of the machine that the job may use."""

    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """The commit of the job's folder; `dirty` if tracked files in it differ from that commit.

    `dirty` is None where git did not answer in time.
    """

    commit: str
    dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPython:
    """A Python and what it has: `cuda` is the version that its torch was built for."""

    version: str | None = None
    cuda: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and the software of a run, by an allow-list: no variable is recorded.

    `python` is the version of the job's Python and `executable` its path, `packages` are versions
    in it. `driver` is that of NVIDIA, `cuda` what the job's torch was built for.
    """

    system: str
    host_memory_bytes: int | None = None
    gpus: tuple[GpuModel, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    python: str | None = None
    executable: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    git: GitState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file of training data; `path` is relative to the job's folder where it lies in it.

    `sha256` is of the whole file, or of its first and last `hashed_bytes` / 2 where the file is
    larger; None where too much was hashed already. `samples` is None where they cannot be counted.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    hashed_bytes: int = 0
    samples: int | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether the hash is of every byte."""
        return self.sha256 is not None and self.hashed_bytes == self.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """Tokens of the samples, before anything is cut."""

    median: int
    percentile_95: int
    longest: int
    counted_by: str

    @classmethod
    def of(cls, lengths: Lengths) -> LengthSummary:
        """Summarize what is known of the lengths."""
        ordered = lengths.sorted_tokens
        return cls(
            median=lengths.median,
            percentile_95=ordered[(len(ordered) - 1) * 95 // 100],
            longest=lengths.longest,
            counted_by=lengths.counted_by,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFingerprint:
    """The data that a job names: its local files, and names of what is not a local file.

    `left_out` is how many further files there are. `seed` is None where the job states none.
    """

    files: tuple[DataFile, ...] = ()
    left_out: int = 0
    elsewhere: tuple[str, ...] = ()
    lengths: LengthSummary | None = None
    seed: int | None = None

    @property
    def samples(self) -> int | None:
        """All samples, None where not every file's could be counted."""
        counts = [one.samples for one in self.files]
        if not counts or None in counts or self.left_out or self.elsewhere:
            return None
        return sum(count or 0 for count in counts)
