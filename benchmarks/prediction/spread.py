"""How far xMem's small batches differ by the shuffle alone: spread.json.

Its loop shuffles without a seed and pads each batch to its longest line, so that a run of batches
of 5 or 10 lines often has one that is shorter than the limit, and the next one's blocks then do
not fit where the last one's were. Runs are drawn here from the lengths of WikiText-2's lines.
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

from rows import Row, rows
from run import MIB, ask

HERE = Path(__file__).parent
DRAWS, SEED = 100, 0
ITERATIONS = 4
#: From 20 lines on, 98 runs of 100 have no shorter batch.
LARGEST_BATCH = 10
Run = tuple[int, ...]  # the longest line of each batch


def main() -> None:
    counts = json.loads((HERE / "wikitext_lengths.json").read_text())["lines_by_tokens"]
    lines = [int(tokens) for tokens, count in counts.items() for _ in range(count)]
    small = [
        row for row in rows() if row.source == "xMem artifact" and _batch(row) <= LARGEST_BATCH
    ]
    found = {row.name: spread(row, lines) for row in small}
    (HERE / "spread.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def spread(row: Row, lines: list[int]) -> dict[str, Any]:
    """Draw runs of a row; give their reserved peaks in MiB beside the published one."""
    chance = random.Random(SEED)
    drawn = [
        tuple(max(chance.sample(lines, _batch(row))) for _ in range(ITERATIONS))
        for _ in range(DRAWS)
    ]
    peaks = _peaks(row, sorted(set(drawn)))
    each = sorted(peaks[run] for run in drawn)
    assert row.measured_bytes is not None
    return {
        "published": row.measured_bytes / MIB, "draws": DRAWS,
        "all_batches_full": sum(min(run) == max(lines) for run in drawn),
        "least": each[0], "median": statistics.median(each), "tenth_highest": each[-10],
        "most": each[-1],
        "peaks": {" ".join(map(str, run)): peaks[run] for run in peaks},
    }  # fmt: skip


def _peaks(row: Row, runs: list[Run]) -> dict[Run, float]:
    (variant,) = row.request["variants"]
    variants = [
        variant | {"id": str(number), "recipe": variant["recipe"] | _lengths(row, run)}
        for number, run in enumerate(runs)
    ]
    answers = ask(row.environment, row.request | {"variants": variants})
    return {
        run: answer["estimate"]["reserved_bytes"] / MIB
        for run, answer in zip(runs, answers, strict=True)
    }


def _lengths(row: Row, run: Run) -> dict[str, Any]:
    others = _batch(row) - 1
    lengths = [[longest] * others + [max(1, longest // 2)] for longest in run]
    return {"lengths": lengths, "steps": len(run)}


def _batch(row: Row) -> int:
    return int(row.request["variants"][0]["plan"]["micro_batch"])


if __name__ == "__main__":
    main()
