"""Holds sharded plans against real ranks on the CPU: writes sharded_truth.json and .md.

    python benchmarks/prediction/sharded.py [NAME...]

The cases stand in tests/frameworks/sharded_cases.py, how they are measured in sharded_ranks.py
beside it. Needs a C compiler; DeepSpeed compiles its Adam for the CPU at the first offloaded case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "tests" / "frameworks"))
from environments import environment  # noqa: E402  found on the path set above
from sharded_cases import CASES  # noqa: E402
from sharded_truth import ENVIRONMENT, compared  # noqa: E402

TERMS = ("weights", "gradients", "optimizer", "rest", "peak", "host")
PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "peft")
_VERSIONS = (
    "import importlib.metadata as m, json, sys\n"
    "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
)


def versions() -> dict[str, str]:
    """Return what the ranks ran."""
    words = [str(environment(ENVIRONMENT)), "-c", _VERSIONS, *PACKAGES]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown: MB, measured / predicted."""
    heading = ["", "case", *TERMS, "error of the peak", ""]
    lines = [" | ".join(heading).strip(), "|" + "---|" * (len(heading) - 2)]
    for row in rows:
        pairs = [(row["measured"][term], row["predicted"][term]) for term in TERMS]
        cells = [
            f"{one / 1e6:.2f} / {other / 1e6:.2f}" if one or other else "" for one, other in pairs
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['error']:+.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all and write the tables."""
    cases = [case for case in CASES if not sys.argv[1:] or case.name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        rows = compared(cases, Path(folder))
    if sys.argv[1:]:
        print(table(rows))
        return
    found = {"versions": versions(), "rows": rows}
    (HERE / "sharded_truth.json").write_text(json.dumps(found, indent=1) + "\n")
    said = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    (HERE / "sharded_truth.md").write_text(f"MB, measured / predicted; {said}.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
