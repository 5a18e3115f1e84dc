"""Compare steps that run again in smaller parts with a restart, on the same two small jobs.

    make in-place PAIRS=3

Each pair launches a job three times, in an order that turns: with `--in-place` under a memory
limit that it exceeds, with `--no-in-place` under the same limit, and with `--no-in-place` under a
limit that it never reaches (a limit by itself changes how memory is taken, and so the time of a
step). The jobs: every batch is four times too large from the first step on (`first_step`), and
samples of one batch in the middle are 16 times as long as the others (`outlier`). Neither saves a
checkpoint.

`seconds` is wall time and `cpu_seconds` that of all processes, oomguard's own included; where the
machine is busy with other work, only the latter says much. `lost_seconds` is what the failures
took: the steps that failed, or the attempts. `beyond` is the wall time without it, as a multiple of
that of the run that never ran out. Raw figures go to result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FRAMEWORKS = HERE.parents[1] / "tests" / "frameworks"
sys.path.insert(0, str(FRAMEWORKS))
from jobs import TinyJob, hf_job  # noqa: E402  the jobs that the tests use
from launched import again, cap_for, launch  # noqa: E402

Words = Callable[[TinyJob], Sequence[str]]
#: Short batches on each side of the long one.
SHORT = 10
#: The samples of 256 tokens that fit at once; every batch has 16.
WAYS = {"in_place": 6, "restart": 6, "whole": 64}


def outlier(job: TinyJob) -> Sequence[str]:
    """Return the command of a job with one long batch in the middle."""
    lengths = [*["16"] * SHORT, "256", *["16"] * SHORT]
    return (
        "--", str(job.python), str(FRAMEWORKS / "trainer_script.py"),
        "--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "True",
        "--report_to", "none", "--save_strategy", "no", "--per_device_train_batch_size", "16",
        "--max_steps", str(len(lengths)), "--lengths", *lengths,
    )  # fmt: skip


JOBS: dict[str, Words] = {"first_step": lambda _: ("train.yaml",), "outlier": outlier}


def measure(made: TinyJob, words: Words, way: str) -> dict[str, Any]:
    """Launch a job once in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        job = again(made, Path(folder))
        limit = ("--host-memory", str(cap_for(made, WAYS[way])))
        flag = "--in-place" if way == "in_place" else "--no-in-place"
        began, used = time.monotonic(), spent()
        launched = launch(job, flag, *limit, *words(job))
        seconds, cpu = time.monotonic() - began, spent() - used
        if launched.code != 0:
            raise SystemExit(f"{way} ended with {launched.code}:\n{launched.err[-3000:]}")
        attempts = launched.attempts
    splits = attempts[-1]["splits"]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "failed_launches": len(attempts) - 1,
        "lost_seconds": sum(one["seconds"] for one in attempts[:-1])
        + (splits["seconds"] if splits else 0.0),
        "failed_steps": splits["failed"] if splits else 0,
        "split_steps": splits["steps"] if splits else 0,
        "optimizer_steps": attempts[-1]["optimizer_steps"],
        "load": os.getloadavg()[0],
    }


def spent() -> float:
    """Return the CPU time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over pairs: of what each way took, and of its ratios to the others."""
    found: dict[str, Any] = {
        way: {
            name: statistics.median(pair[way][name] for pair in pairs)
            for name in ("seconds", "cpu_seconds", "failed_launches", "lost_seconds")
        }
        for way in WAYS
    }
    for one, other in (("in_place", "restart"), ("in_place", "whole"), ("restart", "whole")):
        found[f"{one} / {other}"] = {
            name: statistics.median(pair[one][name] / pair[other][name] for pair in pairs)
            for name in ("seconds", "cpu_seconds")
        }
    for way in ("in_place", "restart"):
        found[way]["beyond"] = statistics.median(
            (pair[way]["seconds"] - pair[way]["lost_seconds"]) / pair["whole"]["seconds"]
            for pair in pairs
        )
    return found


def main() -> None:
    """Measure both jobs in turn, and keep every launch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    options = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    pairs: dict[str, list[dict[str, dict[str, Any]]]] = {name: [] for name in JOBS}
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        made = hf_job(Path(folder))
        for number in range(options.pairs):
            for name, words in JOBS.items():
                order = [*WAYS][number % len(WAYS) :] + [*WAYS][: number % len(WAYS)]
                pairs[name].append({way: measure(made, words, way) for way in order})
                found = {job: figures(seen) for job, seen in pairs.items() if seen}
                result = {"machine": machine, "median": found, "pairs": pairs}
                beside = options.out.with_suffix(".new")
                beside.write_text(json.dumps(result, indent=1) + "\n")
                beside.replace(options.out)
                print(number + 1, name, json.dumps(pairs[name][-1]), flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
