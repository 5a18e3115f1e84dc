"""Measure `oomguard explain` on labelled logs: `python benchmarks/explain/run.py [--out NAME]`.

Reads a folder of labelled texts and writes NAME.json and NAME.md: the kind over the clear texts,
the phase where a text states one and its absence elsewhere, both sizes, false alarms, and each
miss. Where a text allows a second kind (`kind_also`), that counts as right.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from oomguard.evidence.judge import judge_log  # noqa: E402  found through the path above

LABELLED = HERE.parents[1] / "tests" / "data" / "failures"
SIZES = ("requested_bytes", "capacity_bytes")
MEMORY = ("device_oom", "host_oom", "shm_oom", "pinned_oom")


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the labelled texts of a folder, by name."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def read(log: dict[str, Any]) -> dict[str, Any]:
    """Return what was found in one text next to what its label says."""
    verdict, expected = judge_log([log["text"].encode()], log["exit_code"]), log["expected"]
    kinds = [expected["kind"], *expected.get("kind_also", [])]
    found = {"kind": verdict.kind.value, "phase": verdict.phase.value}
    return {
        "id": log["id"],
        "clear": not log["ambiguous"],
        "expected": {"kind": expected["kind"], "phase": expected["phase"]}
        | {name: expected[name] for name in SIZES},
        "found": found | {name: getattr(verdict, name) for name in SIZES},
        "kind_right": verdict.kind.value in kinds,
        "phase_right": verdict.phase.value == (expected["phase"] or "unknown"),
        "bytes_right": all(getattr(verdict, name) == expected[name] for name in SIZES),
        "false_alarm": verdict.kind.is_memory and not any(kind in MEMORY for kind in kinds),
    }


def tally(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return how many rows are right, and of how many, for each figure."""
    clear = [row for row in rows if row["clear"]]
    stated = [row for row in rows if row["expected"]["phase"]]
    absent = [row for row in rows if not row["expected"]["phase"]]
    sized = [row for row in rows if any(row["expected"][name] for name in SIZES)]
    others = [row for row in clear if row["expected"]["kind"] not in MEMORY]
    return {
        "kind, clear texts": _share(clear, "kind_right"),
        "phase, where stated": _share(stated, "phase_right"),
        "phase absent, elsewhere": _share(absent, "phase_right"),
        "bytes, where stated": _share(sized, "bytes_right"),
        "bytes, all texts": _share(rows, "bytes_right"),
        "false alarms": [sum(row["false_alarm"] for row in rows), len(others)],
    }


def _share(rows: list[dict[str, Any]], field: str) -> list[int]:
    return [sum(row[field] for row in rows), len(rows)]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the figures and the texts that were read wrong, as tables."""
    lines = ["| figure | of |", "|---|---|"]
    lines += [f"| {name} | {right} of {of} |" for name, (right, of) in tally(rows).items()]
    lines += ["", "| text | what | label | found |", "|---|---|---|---|"]
    for row in rows:
        for what, names in (("kind", ("kind",)), ("phase", ("phase",)), ("bytes", SIZES)):
            if not row[f"{what}_right"]:
                label, found = (
                    ", ".join(str(row[side][name]) for name in names)
                    for side in ("expected", "found")
                )
                note = "" if row["clear"] else " (ambiguous)"
                lines.append(f"| {row['id']}{note} | {what} | {label} | {found} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=LABELLED, help="folder of labelled texts")
    parser.add_argument("--out", default="results", help="name of the tables to write here")
    chosen = parser.parse_args()
    rows = [read(log) for log in load(chosen.texts)]
    table = markdown(rows)
    result = {"figures": tally(rows), "rows": rows}
    (HERE / f"{chosen.out}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (HERE / f"{chosen.out}.md").write_text(table, "utf-8")
    print(table)


if __name__ == "__main__":
    main()
