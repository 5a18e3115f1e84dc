"""Compares traced peaks with real runs on the CPU: writes cpu_truth.json and cpu_truth.md.

    python benchmarks/prediction/truth.py

The cases and how they are measured stand in tests/frameworks/dryrun_truth.py, those of torchtune
and TRL in torchtune_truth.py and trl_truth.py beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parents[1] / "tests" / "frameworks"
sys.path.append(str(TESTS))
from environments import environment  # noqa: E402  found on the path set above

import oomguard.tracer  # noqa: E402

#: The script that holds the cases of an environment.
SCRIPTS = {
    "hf": "dryrun_truth.py",
    "llamafactory": "dryrun_truth.py",
    "torchtune": "torchtune_truth.py",
    "trl": "trl_truth.py",
    "optimizers": "optimizer_truth.py",
}


def measured(name: str) -> list[dict[str, Any]]:
    """Run the cases of one environment."""
    done = subprocess.run(
        [str(environment(name)), "-W", "ignore", str(TESTS / SCRIPTS[name])],
        env=os.environ | {"PYTHONPATH": oomguard.tracer.PYTHONPATH},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        row["error"] = round(row["traced_bytes"] / row["real_bytes"] - 1, 5)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown."""
    lines = [
        f"| {row['name']} | {row['traced_bytes']:,} | {row['real_bytes']:,} | {row['error']:+.2%} |"
        for row in rows
    ]
    heading = ["| configuration | traced bytes | real bytes | error |", "|---|---|---|---|"]
    return "\n".join([*heading, *lines]) + "\n"


def main() -> None:
    """Measure all and write the tables."""
    rows = [row for name in SCRIPTS for row in measured(name)]
    (HERE / "cpu_truth.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "cpu_truth.md").write_text(table(rows))


if __name__ == "__main__":
    main()
