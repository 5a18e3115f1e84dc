"""Train with a loop of one's own, without a limit and under one, and print what differed.

    python hand_written.py
    torchrun --nproc-per-node 2 hand_written.py

Under torchrun the ranks train with DistributedDataParallel, and only the last one is limited. Each
prints one JSON object: for each case the largest relative difference and the limit that was
learned, or the error that ended it.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from oomguard.torch import BackwardInParts

WORDS, HIDDEN, ROWS, TOKENS = 4096, 16, 16, 64
#: Room for about half a batch: logits, their log-probabilities and gradient are 16 MiB each.
ROOM = 36 << 20
HARD = resource.getrlimit(resource.RLIMIT_DATA)[1]
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def each(model: Any, batch: dict[str, Any]) -> Any:
    """Return the losses of the tokens of each row."""
    logits = model(batch["input_ids"])[:, :-1].transpose(1, 2)
    return nn.functional.cross_entropy(logits, batch["labels"][:, 1:], reduction="none")


def of_tokens(model: Any, batch: dict[str, Any]) -> Any:
    """Return the mean over the tokens that have a loss."""
    return each(model, batch).sum() / (batch["labels"][:, 1:] != -100).sum()


def of_rows(model: Any, batch: dict[str, Any]) -> Any:
    """Return the mean over the rows of the mean of each."""
    return (each(model, batch).sum(1) / (batch["labels"][:, 1:] != -100).sum(1)).mean()


def compared(model: Any, batch: dict[str, Any]) -> Any:
    """Return a loss that compares the rows with each other."""
    vectors = model(batch["input_ids"]).mean(1)
    return nn.functional.cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)))


def of_tuples(model: Any, batch: tuple[Any, Any]) -> Any:
    """Return the sum of squares of a batch that is a tuple."""
    return (model(batch[0]).mean((1, 2)) - batch[1]).square().sum()


@dataclass
class Case:
    """A loss of rows of `lengths`, with the micro batches of a step and the memory that is left."""

    loss: Callable[[Any, Any], Any]
    lengths: tuple[int, ...] = (64, 23, 40, 61, 12, 64, 50)
    accumulation: int = 1
    room: int = ROOM
    weights: str = "shifted labels"


CASES = {
    "tokens": Case(of_tokens),
    "rows": Case(of_rows, weights="rows"),
    "accumulated": Case(of_tokens, accumulation=2),
    "tuples": Case(of_tuples, weights="sum", room=10 << 20),
    "outlier": Case(of_tokens, lengths=(*[TOKENS // 2] * 20, 4 * TOKENS, *[TOKENS // 2] * 27)),
    "compared": Case(compared, room=12 << 20),
    "single_row": Case(of_tokens, room=1 << 20),
    "wrong_weights": Case(of_rows, weights="sum"),
}


def batch_of(case: Case, number: int) -> Any:
    """Return the micro batch of a number, other rows on each rank."""
    generator = torch.Generator().manual_seed(number * WORLD + RANK)
    lengths = [case.lengths[(number * ROWS + row) % len(case.lengths)] for row in range(ROWS)]
    width = max(lengths)
    ids = torch.randint(5, WORDS, (ROWS, width), generator=generator)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    if case.loss is of_tuples:
        return ids, torch.randn(ROWS, generator=generator)
    labels = torch.where(mask, ids, -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}


def train(case: Case, room: int | None) -> tuple[list[tuple[float, ...]], int]:
    """Return loss and gradient norms of each step, and the number of tokens that fit at last."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(WORDS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WORDS))
    if WORLD > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    backward = BackwardInParts(
        model, lambda batch: case.loss(model, batch) / case.accumulation, weights=case.weights
    )
    seen: list[tuple[float, ...]] = []
    try:
        for step in range(3):
            if step == 1 and room is not None:
                status = Path("/proc/self/status").read_text().split("VmData:")[1].split()
                limit = int(status[0]) * 1024 + room
                resource.setrlimit(resource.RLIMIT_DATA, (limit, HARD))
            numbers = range(step * case.accumulation, (step + 1) * case.accumulation)
            loss = backward([batch_of(case, number) for number in numbers])
            norms = [float(one.grad.norm()) for one in model.parameters()]
            seen.append((float(loss), *norms))
            optimizer.step()
            optimizer.zero_grad()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (HARD, HARD))
    return seen, backward.limit_tokens or 0


def differences(case: Case) -> dict[str, Any]:
    """Train twice; return the largest relative difference, and the limit that was learned."""
    whole, _ = train(case, None)
    try:
        parts, limit = train(case, case.room if RANK == WORLD - 1 else None)
    except RuntimeError as error:
        return {"error": str(error), "cause": str(error.__cause__)}
    pairs = [pair for a, b in zip(whole, parts, strict=True) for pair in zip(a, b, strict=True)]
    return {"differs": max(abs(a - b) / abs(a) for a, b in pairs), "limit": limit}


if __name__ == "__main__":
    if WORLD > 1:
        distributed.init_process_group("gloo")
    names = ("tokens", "accumulated", "outlier") if WORLD > 1 else tuple(CASES)
    print(json.dumps({name: differences(CASES[name]) for name in names}), flush=True)
