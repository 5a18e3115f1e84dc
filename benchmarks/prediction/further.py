"""Predict further runs of xMem's artifact, which the rows do not have: further.md.

Every run that was looked up is here. None decided anything of the rows' setting, but for the order
of the segments: gpt-neo's batches of 25 lines decided it, distilgpt2's of 15 agreed.
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

from rows import Row, xmem
from run import MIB, ask

HERE = Path(__file__).parent
SMALL_BATCH = 10  # up to here the shuffle decides: see spread.py


def main() -> None:
    runs = json.loads((HERE / "xmem_further.json").read_text())["runs"]
    lines = [_line(run) for run in runs]
    text = report(lines)
    (HERE / "further.md").write_text(text)
    print(text)


def report(lines: list[dict[str, Any]]) -> str:
    """Write every run, and below it the errors of large batches and of small ones."""
    parts = ["| row | run | measured MiB | predicted MiB | error |", "|---|---|---|---|---|"]
    parts += [
        f"| {line['row']} | {line['run']} | {line['measured']:.0f} | {line['predicted']:.0f} | "
        f"{line['error']:+.2%} |"
        for line in lines
    ]
    for word, small in (("more than", False), ("at most", True)):
        errors = [abs(line["error"]) for line in lines if line["small"] == small]
        parts.append(
            f"\n{len(errors)} runs of {word} {SMALL_BATCH} lines: median "
            f"{statistics.median(errors):.2%}, worst {max(errors):.2%}."
        )
    return "\n".join(parts) + "\n"


def _line(run: dict[str, Any]) -> dict[str, Any]:
    row = xmem(run | {"max_seq_length": 128, "oom": False})
    assert row.measured_bytes is not None
    predicted = _reserved(run["model"], run["optimizer"], run["micro_batch_size"])
    return {
        "row": row.name, "run": run["run"], "measured": row.measured_bytes / MIB,
        "predicted": predicted / MIB, "error": predicted / row.measured_bytes - 1,
        "small": run["micro_batch_size"] <= SMALL_BATCH,
    }  # fmt: skip


@cache
def _reserved(model: str, optimizer: str, batch: int) -> int:
    item = {"model": model, "optimizer": optimizer, "micro_batch_size": batch}
    row: Row = xmem(item | {"max_seq_length": 128, "oom": False, "peak_bytes": 0})
    (answer,) = ask(row.environment, row.request)
    return int(answer["estimate"]["reserved_bytes"])


if __name__ == "__main__":
    main()
