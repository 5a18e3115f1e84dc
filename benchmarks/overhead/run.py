"""What supervising costs: the same job with and without, side by side in one run.

    python benchmarks/overhead/run.py [--pairs N]

Writes the raw figures to result.json beside this file and prints a table. Ratios are medians over
interleaved pairs; the times after an out-of-memory error come from the run's own event log.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FRAMEWORKS = HERE.parents[1] / "tests" / "frameworks"
sys.path[:0] = [str(FRAMEWORKS), str(HERE.parents[1] / "recipes" / "quickstart")]

from jobs import TinyJob, cap_bytes, hf_job  # noqa: E402  found on the path set above

OOMGUARD = [sys.executable, "-m", "oomguard"]
LINES = 400_000


def seconds(argv: list[str], **how: object) -> float:
    begin = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)  # type: ignore[call-overload]
    return time.monotonic() - begin


def wall(job: TinyJob, pairs: int) -> dict[str, list[float]]:
    """Time a job that fits: started manually, supervised, and supervised without the monitor."""
    command = list(job.by_hand(4))
    how = {"cwd": job.folder, "env": dict(job.env)}
    ways = {
        "bare": command,
        "supervised": [*OOMGUARD, "launch", "--", *command],
        "without_inside": [*OOMGUARD, "launch", "--no-monitor", "--", *command],
    }
    seconds(command, **how)  # files come into the cache
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, argv in ways.items():
            taken[name].append(seconds(argv, **how))
    return taken


def after_oom(job: TinyJob) -> list[dict[str, float]]:
    """Time from the first word of an OOM to the last process gone, and to the next start."""
    run = [*OOMGUARD, "launch", job.config.name, "--host-memory", str(cap_bytes(job))]
    seconds([*run, "--name", "oom"], cwd=job.folder, env=dict(job.env))
    lines = (job.folder / "oomguard-runs" / "oom" / "events.jsonl").read_text().splitlines()
    times: list[dict[str, float]] = []
    noticed = exited = None
    for event in map(json.loads, lines):
        match event["event"]:
            case "noticed":
                noticed = noticed or event["t"]
            case "exited":
                exited = event["t"]
            case "started" if noticed and exited:
                times.append({"gone_s": exited - noticed, "next_s": event["t"] - noticed})
                noticed = exited = None
    return times


def tee(folder: Path, pairs: int) -> dict[str, list[float]]:
    """Time many lines into a pipe that is only read, and through the supervisor."""
    code = f"import sys\nfor n in range({LINES}): sys.stdout.write('step %d loss 1.0\\n' % n)"
    job = [sys.executable, "-c", code]
    script = folder / "lines.py"
    script.write_text(code)
    ways = {
        "pipe": [sys.executable, "-c", f"import subprocess; subprocess.run({job!r}, stdout=-1)"],
        "supervised": [*OOMGUARD, "launch", "--no-monitor", "--", sys.executable, str(script)],
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, argv in ways.items():
            taken[name].append(seconds(argv, cwd=folder))
    return taken


def ratio(taken: dict[str, list[float]], way: str, base: str) -> float:
    pairs = zip(taken[way], taken[base], strict=True)
    return statistics.median(one / other for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = hf_job(folder / "job")
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "python": platform.python_version(),
            "wall_s": wall(job, pairs),
            "after_oom": after_oom(job),
            "tee_lines": LINES,
            "tee_s": tee(folder, pairs),
            "help_s": [seconds([*OOMGUARD, "--help"]) for _ in range(2 * pairs)],
        }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def show(result: dict[str, object]) -> None:
    walls, tees = result["wall_s"], result["tee_s"]
    begin = statistics.median(result["help_s"])
    gone = max(one["gone_s"] for one in result["after_oom"])
    following = max(one["next_s"] for one in result["after_oom"])
    rate = LINES / statistics.median(tees["supervised"])
    rows = {
        "wall time, supervised / bare": f"{ratio(walls, 'supervised', 'bare'):.3f}",
        "wall time, without inside / bare": f"{ratio(walls, 'without_inside', 'bare'):.3f}",
        "first word of an OOM to last process gone (most)": f"{gone:.2f} s",
        "first word of an OOM to the next start (most)": f"{following:.2f} s",
        "lines per second through the supervisor": f"{rate:,.0f}",
        "oomguard --help (median)": f"{begin:.2f} s",
    }
    for name, value in rows.items():
        print(f"{name:<52} {value:>12}")


if __name__ == "__main__":
    main()
