"""Read the labelled texts with other people's checks: `python benchmarks/explain/competitors.py`.

Each check answers yes or no to "did memory run out?", so that only this is compared, over the
clear texts. accelerate's and Lightning's checks take the exception; they get a RuntimeError with
the whole text as its message, which is more than they would see. Run with the Python of an
environment that has accelerate or lightning; a check that is not installed is left out. Results of
several runs are merged into competitors.json and competitors.md. NOT_RUN says which checks cannot
run on texts alone, and what was looked at to know that.
"""

# ruff: noqa: PLC0415 -- a check may not be installed
from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETS = {
    "labelled": HERE.parents[1] / "tests" / "data" / "failures",
    "unseen": HERE / "unseen",
    "unseen2": HERE / "unseen2",
    "unseen3": HERE / "unseen3",
}
#: The table of run.py that holds what `explain` found in each set: of unseen texts the first run.
OURS = {
    "labelled": "after",
    "unseen": "unseen_first",
    "unseen2": "unseen2_first",
    "unseen3": "unseen3_first",
}
MEMORY = {"device_oom", "host_oom", "shm_oom", "pinned_oom"}
NOT_RUN = {
    "nvidia-resiliency-ext 0.4.1 attribution": (
        "the newest on PyPI; inprocess/attribution.py names how a rank was interrupted and reads no"
        " log"
    ),
    "logsage 0.1.8 (NVRx's log analysis)": (
        "return_application_errors(llm: ChatNVIDIA, ...): needs a hosted language model"
    ),
}
GREP = re.compile(
    r"out of memory|oom|memoryerror|cannot allocate memory|bad_alloc|killed", re.IGNORECASE
)


def checks() -> dict[str, Callable[[str], bool]]:
    """Return the checks that are installed, by name and version."""
    found: dict[str, Callable[[str], bool]] = {}
    found["grep -i"] = lambda text: bool(GREP.search(text))
    try:
        from accelerate.utils.memory import should_reduce_batch_size

        name = f"accelerate {version('accelerate')} should_reduce_batch_size"
        found[name] = lambda text: bool(should_reduce_batch_size(RuntimeError(text)))
    except ImportError:
        pass
    try:
        from lightning.pytorch.utilities.memory import is_oom_error

        found[f"lightning {version('lightning')} is_oom_error"] = lambda text: bool(
            is_oom_error(RuntimeError(text))
        )
    except ImportError:
        pass
    return found


def measure(check: Callable[[str], bool], folder: Path) -> dict[str, int]:
    """Return how many memory failures a check finds, and its false alarms."""
    logs = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    clear = [log for log in logs if not log["ambiguous"]]
    memory = [log for log in clear if log["expected"]["kind"] in MEMORY]
    others = [log for log in clear if log["expected"]["kind"] not in MEMORY]
    return {
        "found": sum(check(log["text"]) for log in memory),
        "memory": len(memory),
        "false_alarms": sum(check(log["text"]) for log in others),
        "others": len(others),
    }


def ours() -> dict[str, dict[str, int]]:
    """Return the same figures from the tables of run.py (the first run, for the unseen texts)."""
    rows = {}
    for name, table in OURS.items():
        clear = [r for r in json.loads((HERE / f"{table}.json").read_text())["rows"] if r["clear"]]
        memory = [row for row in clear if row["expected"]["kind"] in MEMORY]
        rows[name] = {
            "found": sum(row["found"]["kind"] in MEMORY for row in memory),
            "memory": len(memory),
            "false_alarms": sum(row["false_alarm"] for row in clear),
            "others": len(clear) - len(memory),
        }
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """Return the table."""
    lines = ["| check | texts | memory failures found | false alarms |", "|---|---|---|---|"]
    for name, sets in rows.items():
        for texts, row in sets.items():
            lines.append(
                f"| {name} | {texts} | {row['found']} of {row['memory']} "
                f"| {row['false_alarms']} of {row['others']} |"
            )
    lines += [f"| {name} | not run | {why} | |" for name, why in NOT_RUN.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    path = HERE / "competitors.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows["oomguard explain"] = ours()
    for name, check in checks().items():
        rows[name] = {texts: measure(check, folder) for texts, folder in SETS.items()}
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "competitors.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
