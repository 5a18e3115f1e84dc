"""What an optimizer keeps for each number that it trains, by the names that frameworks give it.

Source: the states of the real optimizers, counted on one matrix of 512 x 1024 in fp32 and in bf16:
torch 2.13, transformers 5.23, bitsandbytes 0.50.2, torchao 0.15, schedulefree 1.4.1, torch-optimi
0.3.3, came-pytorch 0.1.3, grokadamw 0.1.2, galore-torch 1.0, apollo-torch 1.0.3, adam-mini
1.1.1, lomo-optim 0.1.1, and LLaMA-Factory 0.9.5's own Muon.
"""

from __future__ import annotations

from dataclasses import dataclass

_FP32 = 4
#: bitsandbytes and torchao: one fp32 constant per 256 numbers in 8 bits.
_EIGHT_BITS = 1 + 4 / 256
_FOUR_BITS = 0.5 + 4 / 128
#: Means of rows and columns in place of a number for each: next to nothing.
_FACTORED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """`count` values for each trained number, of `size` bytes; None: as the number itself.

    `in_half` more are kept where numbers are trained in 16 bits. `paged` states are in managed
    memory. `together` says that the update works on all parameters at once where it may, `copies`
    are those in fp32 that it makes of the tensor it updates (two more of one in 16 bits).
    `wide_embeddings` says that transformers' Trainer keeps the states of embeddings in fp32.
    `tensors` are temporaries of the size and format of the tensor at work.

    Of numbers that are in no matrix of a layer (embeddings, the head, norms) `elsewhere` values are
    kept, where it is not None. With a `rank`, those of a matrix are kept for its gradient projected
    to that many rows or columns, beside the projection itself.
    """

    count: float
    size: float | None = None
    in_half: int = 0
    paged: bool = False
    together: bool = False
    copies: int = 0
    wide_embeddings: bool = False
    tensors: int = 0
    elsewhere: float | None = None
    rank: int | None = None

    def values(self, rows: int, columns: int) -> float:
        """Return how many values are kept for a matrix of a layer."""
        if self.rank is None:
            return self.count * rows * columns
        rank, narrow = min(self.rank, rows, columns), min(rows, columns)
        return rank * (self.count * max(rows, columns) + narrow)

    def bytes_each(self, number_bytes: int) -> float:
        """Return the bytes on the GPU for a trained number of `number_bytes`."""
        if self.paged:
            return 0.0
        size = number_bytes if self.size is None else self.size
        extra = self.in_half * number_bytes if number_bytes < _FP32 else 0
        return self.count * size + extra

    def more_for_embeddings(self) -> float:
        """Return the bytes on the GPU that the Trainer adds for each number of an embedding.

        Source: transformers 5.23, trainer.py (create_optimizer registers them with bitsandbytes'
        GlobalOptimManager).
        """
        size = _FP32 if self.size is None else self.size
        return self.count * (_FP32 - size) if self.wide_embeddings and not self.paged else 0.0

    def working_bytes(self, number_bytes: int) -> int:
        """Return the bytes that an update takes for each number of the tensor it is at."""
        raised = 2 if self.copies and number_bytes < _FP32 else 0
        return _FP32 * (self.copies + raised) + self.tensors * number_bytes


ADAMW = States(count=2, together=True)
#: One value for each number, and one for each row, head or matrix in place of the other.
ADAM_MINI = States(count=1, tensors=2)
#: Momentum for the matrices of layers, AdamW for all else.
MUON_AND_ADAMW = States(count=1, elsewhere=2, tensors=2)
#: PyTorch's own classes, by their names; LitGPT writes them without a path.
_TORCH = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax"), ADAMW),
    **dict.fromkeys(("Adagrad", "RMSprop"), States(count=1, together=True)),
    "Adafactor": States(count=_FACTORED, together=True),
    "SGD": States(count=0),
    "Muon": States(count=1),
}
_STABLE = States(count=2, in_half=1)  # and Kahan's compensation
#: Names of transformers' `optim` (training_args.py, OptimizerNames) and of axolotl's `optimizer`.
_NAMED = {
    **dict.fromkeys(("adam", "adamw", "adamw_hf", "adamw_torch", "adamw_torch_xla"), ADAMW),
    **dict.fromkeys(
        ("adamw_torch_fused", "adamw_apex_fused", "adamw_torch_npu_fused"), States(count=2)
    ),
    "sgd": States(count=0),
    **dict.fromkeys(("adagrad", "rmsprop"), States(count=1, together=True)),
    "adafactor": States(count=_FACTORED, size=_FP32, copies=2),
    "came_pytorch": States(count=1 + _FACTORED, size=_FP32),
    **dict.fromkeys(("adamw_torch_8bit", "ao_adamw_8bit"), States(count=2, size=_EIGHT_BITS)),
    **dict.fromkeys(("adamw_torch_4bit", "ao_adamw_4bit"), States(count=2, size=_FOUR_BITS)),
    "ao_adamw_fp8": States(count=2, size=_EIGHT_BITS),
    **dict.fromkeys(("stable_adamw", "optimi_adamw"), _STABLE),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam"), ADAMW),
    "schedule_free_sgd": States(count=1),
    # Which use each gradient in the backward pass, and drop it.
    "lomo": States(count=0),
    "adalomo": States(count=_FACTORED, size=_FP32),
    "grokadamw": States(count=3),
}
#: torchao's classes, as torchtune's configs name them.
_TORCHAO = {
    "AdamW8bit": States(count=2, size=_EIGHT_BITS),
    "AdamW4bit": States(count=2, size=_FOUR_BITS),
    "AdamWFp8": States(count=2, size=_EIGHT_BITS),
}
#: What bitsandbytes keeps for a number, in fp32 or in 8 bits, whatever is trained.
_BITSANDBYTES = {"adam": 2, "adamw": 2, "lion": 1, "rmsprop": 1, "ademamix": 3}


def low_rank(rank: int) -> States:
    """Return what GaLore and APOLLO keep: AdamW's states of projected gradients.

    A matrix is decomposed in fp32 where its projection is made anew.
    """
    return States(count=2, elsewhere=2, rank=rank, copies=3, tensors=2)


def states_of(name: str) -> States | None:
    """Return what an optimizer keeps; None for one that is not known, which is nobody's AdamW."""
    path, _, bare = name.rpartition(".")
    if "torchao" in path:
        return _TORCHAO.get(bare)
    if "bitsandbytes" not in path and bare in _TORCH:
        return _TORCH[bare]
    word = bare.lower().replace("-", "_")
    if "bitsandbytes" not in path and word in _NAMED:
        return _NAMED[word]
    return _bitsandbytes(word, stated="bitsandbytes" in path)


def _bitsandbytes(word: str, *, stated: bool) -> States | None:
    """Read `paged_adamw_8bit`, `PagedAdamW8bit` and the like."""
    paged, rest = word.startswith("paged"), word.removeprefix("paged").removeprefix("_")
    narrow, wide = rest.endswith("8bit"), rest.endswith("32bit")
    base = rest.removesuffix("_8bit").removesuffix("8bit")
    base = base.removesuffix("_32bit").removesuffix("32bit")
    is_theirs = stated or paged or narrow or wide or base != base.removesuffix("_bnb")
    base = base.removesuffix("_bnb")
    # transformers takes lion and ademamix from bitsandbytes; the others have twins of PyTorch's.
    if base not in _BITSANDBYTES or not (is_theirs or base in ("lion", "ademamix")):
        return None
    size = _EIGHT_BITS if narrow else _FP32
    return States(count=_BITSANDBYTES[base], size=size, paged=paged, wide_embeddings=narrow)
