"""`Job`: what the user asked for, before oomguard changed anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from oomguard.configfile.document import Files, Source
from oomguard.job.plan import Plan
from oomguard.job.stored_format import StoredFormat

#: What `Lengths.counted_by` says of an exact count.
BY_TOKENIZER = "the tokenizer"


class Device(str, Enum):
    """Where the job computes. On a CPU job the host's memory is the device's memory."""

    CUDA = "cuda"
    CPU = "cpu"


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
class Lengths:
    """How long the training samples are, in tokens, before anything is cut.

    `sorted_tokens` are the lengths of at most a few hundred samples, spread evenly over all of
    them in the order of their length; the last is the longest. `counted_by` says how tokens were
    counted; no sample has more than `at_most`, with its template, None where that is the longest.
    `least` is the shortest cut that leaves every sample's media tokens whole, 0 where
    no sample holds any. `filled` says that sequences are as long as the limit whatever the data
    (packing). `images` are height and width of each image of the sample with the most pixels,
    () where there is none or not all of its files can be read. `longest_at` is where the longest
    sample stands: its file, and its index from 0.
    """

    samples: int
    sorted_tokens: tuple[int, ...]
    counted_by: str
    at_most: int | None = None
    least: int = 0
    filled: bool = False
    images: tuple[tuple[int, int], ...] = ()
    longest_at: str | None = None

    @property
    def is_exact(self) -> bool:
        """Return whether the model's own tokenizer has counted."""
        return self.counted_by == BY_TOKENIZER

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return self.sorted_tokens[-1]

    @property
    def median(self) -> int:
        """Tokens of a sample that half of the others are as long as at most."""
        return self.sorted_tokens[(len(self.sorted_tokens) - 1) // 2]

    def lost(self, limit: int, *, whole: bool = False) -> float:
        """Return the share of all tokens that a limit cuts off, or drops with `whole` samples."""
        cut = sum(
            tokens - (0 if whole else limit) for tokens in self.sorted_tokens if tokens > limit
        )
        return cut / max(1, sum(self.sorted_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job as the user would start it manually.

    `argv` is the whole command, `config` the file in it that the adapter edits (None where
    every setting is in `argv`), `env` what the user asked to set for the job. `python` is
    the interpreter that will run the framework; `packages` are those of the packages that
    rungs may need which that interpreter can import. `asked` is the plan in the user's own
    settings, with the framework's defaults filled in. `output_dir` is where checkpoints go. `files`
    holds the texts of further files of the user's that an adapter edits, by absolute path.
    `model_type` is that of the model's config.json, None while the config is not known; `stored_as`
    is the format of a checkpoint that is quantized already.
    `trained_embeddings` names the matrices over the vocabulary that are trained in full beside an
    adapter, as for new tokens; `lengths` is known where the data could be read, `bfloat16` says
    whether the device computes in it, `hopper` whether it is a Hopper card, `inside` whether the
    monitor will be in its processes. `compares_samples` says that the loss of a sample depends on
    the others in its micro batch, so that a smaller one is not the same math; `group` is how many
    completions of each prompt are generated and compared, None where nothing is generated.
    `engine_least` is the least share of a GPU in which an inference engine holds the model, None
    while the model's size or the GPU's is not known. `divides` says that the monitor may divide the
    batches of its training loop. `wrapper` are words before `argv`, such as
    `env NAME=VALUE` or `uv run`, which are not part of the framework's command.
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
    model_type: str | None = None
    stored_as: StoredFormat | None = None
    output_dir: str | None = None
    checkpoint_every: int | None = None
    trained_embeddings: tuple[str, ...] = ()
    lengths: Lengths | None = None
    bfloat16: bool = True
    hopper: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    inside: bool = True
    compares_samples: bool = False
    group: int | None = None
    engine_least: float | None = None
    wrapper: tuple[str, ...] = ()
    divides: bool = False

    def __post_init__(self) -> None:
        """Keep what is parsed of the files."""
        object.__setattr__(self, "files", Files.of(self.files))

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks: the invariant of every walk."""
        return self.asked.rank_batch * self.world.size
