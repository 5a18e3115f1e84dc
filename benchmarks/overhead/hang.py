"""How long ranks wait for one that ran out of memory: `python benchmarks/overhead/hang.py`.

Two ranks of torchrun over gloo; one runs out while the other waits for it in an all_reduce, which
would last half an hour. Seconds from the first word of the failure to the last process gone are
from the runs' own event logs; hang.json beside this file has them all.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "tests" / "frameworks")]

from environments import environment  # noqa: E402  found on the path set above
from ranks import cap_bytes, events, launch  # noqa: E402

RUNS = 5


def main() -> None:
    python = environment("hf")
    cap = str(cap_bytes(python))
    taken = [once(python, cap) for _ in range(RUNS)]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    (HERE / "hang.json").write_text(json.dumps({"machine": machine, "gone_s": taken}) + "\n")
    print(
        f"out of memory in mid-collective to group gone: at most {max(taken):.2f} s in {RUNS} runs"
    )


def once(python: Path, cap: str) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ended = launch(folder, python, "--host-memory", cap)
        assert ended.returncode == 0, ended.stderr[-2000:]
        noticed = min(event["t"] for event in events(folder, "noticed"))
        return float(events(folder, "exited")[0]["t"] - noticed)


if __name__ == "__main__":
    main()
