"""Separates the steps of training from everything else that a program counts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from oomguard.evidence.log_lines import Line

_OTHER_WORK = re.compile(
    r"(?i)loading|tokeniz|\bmap\b|generating|converting|download|fetching|examples/s|\bB/s|evaluat"
    r"|validat|shards|prediction|word vec|embedding|extracting|unpack|quantiz|saving"
)
#: A loss, or what only a step of an optimizer has.
_TRAINS = re.compile(r"(?i)loss\b|\blr[\"']?\s*[:=]|\bgrad_?norm\b|\bppl\b|\bskipped=\d")
_COUNTERS = (
    re.compile(r"(?i)\b(?:global[_ ]?|current_)?steps?[\"']?\s*[:=#]?\s*(\d{1,9})\b(?!%)"),
    re.compile(
        r"(?i)\b(?:iter(?:ation)?|batch|num_updates|updates?)\b[\"']?\s*[:=#]?\s*(\d{1,9})\b"
    ),
    re.compile(r"(?i)\bepoch:? \[\d+\]\s*\[\s*(\d{1,9})/\d+\]"),
)
#: A bar with its time: the counter of an inner loop, or of anything.
_BAR = re.compile(r"(?:\||\b)\s*(\d{1,9})/(\d{1,9}) \[\d+:\d\d")
_ANNOUNCED = re.compile(
    r"(?i)\b(?:total (?:optimization |training |train )?steps|max_steps|num_training_steps"
    r"|total_steps|num_train_steps)\b[\"']?\s*[:=]\s*([\d,]{1,12})"
)
ANNOUNCEMENTS = (b"total optimization steps", b"total steps", b"max_steps", b"training steps",
                 b"total_steps", b"train_steps", b"total train")  # fmt: skip
#: Progress bars that go on where a message has a line of its own.
BAR = re.compile(r"\d+%\||it/s|s/it")
_TEXT_CHARS = 4096


def announced_total(text: str) -> int | None:
    """Return how many steps a line announces that training will have."""
    match = _ANNOUNCED.search(text[:_TEXT_CHARS])
    return int(match[1].replace(",", "") or 0) if match else None


def step_of(text: str, totals: Collection[int] = ()) -> int | None:
    """Return the training step in a progress line; None for any other line.

    A line counts with a loss (or what else only a step has), a bare bar only if it runs to one of
    the announced `totals`.
    """
    text = text[:_TEXT_CHARS]
    if "/" not in text and not _TRAINS.search(text):
        return None
    if _OTHER_WORK.search(text[:200]):
        return None
    bar = _BAR.search(text)
    if _TRAINS.search(text):
        found = (pattern.search(text) for pattern in _COUNTERS)
        counted = next((int(match[1]) for match in found if match), None)
        if bar and (counted is None or "steps" not in text.lower()):
            return int(bar[1])
        return counted
    return int(bar[1]) if bar and int(bar[2]) in totals else None


def bar_total(text: str) -> int | None:
    """Return where a bare progress bar runs to; None for any other line."""
    text = text[:_TEXT_CHARS]
    bar = _BAR.search(text)
    plain = bar is not None and not _OTHER_WORK.search(text[:200])
    return int(bar[2]) if bar and plain else None


def is_loss(text: str) -> bool:
    """Return whether a line states a loss of training."""
    text = text[:_TEXT_CHARS]
    return "loss" in text and bool(_TRAINS.search(text)) and not _OTHER_WORK.search(text[:200])


def totals_of(lines: Iterable[Line]) -> set[int]:
    """Return the totals of the bars beside which a loss is printed, as the Trainer does."""
    totals: set[int] = set()
    total: int | None = None
    for line in lines:
        if total is not None and is_loss(line.text):
            totals.add(total)
        total = bar_total(line.text)
    return totals


def last_step(lines: Sequence[Line], rank: int | None, totals: Collection[int] = ()) -> int | None:
    """Return the last training step before a failure; of this rank, if lines name their rank."""
    own = [line for line in lines if rank is None or line.rank in (None, rank)]
    known = {*totals, *totals_of(own)}
    steps = (step_of(line.text, known) for line in reversed(own))
    return next((step for step in steps if step is not None), None)
