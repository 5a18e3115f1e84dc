"""Predict every published row and report the errors: `python benchmarks/prediction/run.py`.

The only constant is what a process takes on the device beside PyTorch's allocator: the CUDA
context. It is fitted on the even-numbered rows that are compared with the device's figure; the
odd-numbered ones are reported apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rows import Row, rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "frameworks"), str(ROOT / "src")]

from environments import environment  # noqa: E402  lies beside the tests

from oomguard.tracer import PYTHONPATH  # noqa: E402

MIB, GIB = 2**20, 2**30
#: Rows whose published figure has two decimals or whole bytes; the others are integers of GB.
PRECISE = ("LitGPT 2023-10", "xMem artifact")


def main() -> None:
    measured = rows()
    answers = [predict(row) for row in measured]
    contexts = fit_contexts(measured, answers)
    table = [
        line(number, row, answer, contexts)
        for number, (row, answer) in enumerate(zip(measured, answers, strict=True))
    ]
    (HERE / "results.json").write_text(
        json.dumps({"context_bytes": contexts, "rows": table}, indent=1) + "\n"
    )
    (HERE / "results.md").write_text(report(table, contexts))
    print(report(table, contexts))


def predict(row: Row) -> dict[str, Any]:
    """Ask the dry run about a row."""
    (answer,) = ask(row.environment, row.request)
    print(row.name, answer.get("seconds", answer), file=sys.stderr)
    return answer


def ask(name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the dry run in the framework's own environment: one answer for each variant."""
    done = subprocess.run(
        [str(environment(name)), "-W", "ignore", "-m", "oomguard_tracer"],
        input=json.dumps(request), capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )  # fmt: skip
    answers: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return answers


def fit_contexts(measured: list[Row], answers: list[dict[str, Any]]) -> dict[str, int]:
    """Fit the context of each source on its even-numbered rows: the median of what is left."""
    left = defaultdict(list)
    for number, (row, answer) in enumerate(zip(measured, answers, strict=True)):
        if row.compared == "device" and row.measured_bytes is not None and number % 2 == 0:
            left[row.source].append(row.measured_bytes - answer["estimate"]["reserved_bytes"])
    return {source: max(0, int(statistics.median(values))) for source, values in left.items()}


def line(number: int, row: Row, answer: dict[str, Any], contexts: dict[str, int]) -> dict[str, Any]:
    estimate = answer["estimate"]
    context = contexts.get(row.source, 0) if row.compared == "device" else 0
    key = "allocated_bytes" if row.compared == "allocated" else "reserved_bytes"
    predicted = estimate[key] + context
    error = None if row.measured_bytes is None else predicted / row.measured_bytes - 1
    fits = answer["fits_replay"]
    return {
        "number": number, "row": row.name, "source": row.source, "compared": row.compared,
        "measured_bytes": row.measured_bytes, "predicted_bytes": predicted, "error": error,
        "within_rounding": None if row.measured_bytes is None else
        abs(predicted - row.measured_bytes) <= row.rounding_bytes,
        "oom": row.oom, "fits": fits, "right": None if fits is None else fits != row.oom,
        "fitted": context > 0 and number % 2 == 0, "method": estimate["method"],
        "terms": estimate["terms"], "seconds": answer["seconds"],
    }  # fmt: skip


def report(table: list[dict[str, Any]], contexts: dict[str, int]) -> str:
    parts = ["# Predicted against published peaks\n", _rows(table), "## Summary\n", _sums(table)]
    fitted = ", ".join(f"{name}: {value / MIB:.0f} MiB" for name, value in contexts.items())
    parts.append(
        f"Fitted on the even-numbered rows (CUDA context, {fitted}); rows compared with "
        "`max_memory_allocated` use no constant.\n"
    )
    return "\n".join(parts)


def _rows(table: list[dict[str, Any]]) -> str:
    lines = ["| # | row | source | measured GiB | predicted GiB | error | fits | right |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for item in table:
        measured = item["measured_bytes"]
        known = "OOM" if measured is None else f"{measured / GIB:.2f}"
        error = "" if item["error"] is None else f"{item['error']:+.2%}"
        lines.append(
            f"| {item['number']} | {item['row']} | {item['source']} | {known} | "
            f"{item['predicted_bytes'] / GIB:.2f} | {error} | {_word(item['fits'])} | "
            f"{_word(item['right'])} |"
        )
    return "\n".join(lines) + "\n"


def _word(value: bool | None) -> str:
    return "" if value is None else ("yes" if value else "no")


def _sums(table: list[dict[str, Any]]) -> str:
    groups = {
        "all": table,
        "two decimals or bytes": [i for i in table if i["source"] in PRECISE],
        "compared as allocated (nothing fitted)": [
            i for i in table if i["compared"] == "allocated"
        ],
        "device rows, context fitted on them": [i for i in table if i["fitted"]],
        "device rows, held out": [
            i for i in table if i["compared"] == "device" and i["number"] % 2
        ],
        **{name: [i for i in table if i["source"] == name] for name in _sources(table)},
    }
    lines = ["| rows | n | median | mean | p95 | under | within rounding | fit/no-fit right |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [_sum(name, items) for name, items in groups.items()]
    return "\n".join(lines) + "\n"


def _sources(table: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(item["source"] for item in table))


def _sum(name: str, items: list[dict[str, Any]]) -> str:
    errors = sorted(abs(i["error"]) for i in items if i["error"] is not None)
    under = [i for i in items if i["error"] is not None and i["error"] < 0]
    exact = [i for i in items if i["within_rounding"]]
    judged = [i for i in items if i["right"] is not None]
    right = sum(i["right"] for i in judged)
    p95 = errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))]
    return (
        f"| {name} | {len(errors)} | {statistics.median(errors):.2%} | "
        f"{statistics.mean(errors):.2%} | {p95:.2%} | {len(under) / len(errors):.0%} | "
        f"{len(exact)} | {right}/{len(judged)} |"
    )


if __name__ == "__main__":
    main()
