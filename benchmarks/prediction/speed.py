"""How long `oomguard plan` takes, and how much memory: `python benchmarks/prediction/speed.py`.

Full-size models in LLaMA-Factory's words, traced in its pinned environment. Each plan is asked
with an empty cache and again from the cache. The yardstick beside the seconds is the import of
torch and transformers in the same environment, in the same run. Memory is the largest resident
set of any one process of the plan. Writes speed.json beside this file.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "frameworks")]

from environments import environment  # noqa: E402  lies beside the tests

GIB = 2**30
REPEATS = 3
JOB = """model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: alpaca
template: default
cutoff_len: 2048
per_device_train_batch_size: {batch}
gradient_accumulation_steps: 8
bf16: true
output_dir: out
"""
ONE_RUNG = ("--ladder", "expandable_segments")


@dataclass(frozen=True)
class Case:
    """A job, and the words behind `oomguard plan`."""

    name: str
    model: str
    words: tuple[str, ...]
    batch: int = 1
    keys: str = ""


CASES = (
    Case("8B, as asked", "meta-llama/Meta-Llama-3-8B", ("--gpu", "3090", *ONE_RUNG)),
    Case("8B, whole ladder", "meta-llama/Meta-Llama-3-8B", ("--gpu", "3090"), batch=4),
    Case("7B vision, as asked", "Qwen/Qwen2.5-VL-7B-Instruct", ("--gpu", "3090", *ONE_RUNG)),
    Case("70B 4-bit, as asked", "meta-llama/Meta-Llama-3-70B", ("--gpu", "a100-80", *ONE_RUNG),
         keys="quantization_bit: 4\n"),
)  # fmt: skip


def main() -> None:
    python = environment("llamafactory")
    yardstick = [run([str(python), "-c", "import torch, transformers"])[0] for _ in range(REPEATS)]
    rows = [measured(python, case) for case in CASES]
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "import_seconds": yardstick,
        "rows": rows,
    }
    (HERE / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows, statistics.median(yardstick)))


def measured(python: Path, case: Case) -> dict[str, Any]:
    """Plan with an empty cache, several times, and once more from the cache."""
    taken = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "train.yaml")
            file.write_text(JOB.format(model=case.model, batch=case.batch) + case.keys)
            command = [sys.executable, "-m", "oomguard", "plan", str(file), "--python", str(python),
                       "--json", *case.words]  # fmt: skip
            first, again = run(command, cache=folder), run(command, cache=folder)
            taken.append((*first, again[0]))
    answer = json.loads(taken[-1][2])
    return {
        "plan": case.name,
        "method": answer["asked"]["estimate"]["method"],
        "rungs": sum(rung["plan"] is not None for rung in answer["rungs"]),
        "seconds": [one[0] for one in taken],
        "seconds_again": [one[3] for one in taken],
        "resident_bytes": max(one[1] for one in taken),
    }


def run(command: list[str], *, cache: str | None = None) -> tuple[float, int, str]:
    """Give seconds, the largest resident set of any process in bytes, and what was printed."""
    read, write = os.pipe()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **({"XDG_CACHE_HOME": cache} if cache else {})}
    began = time.monotonic()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_CLOSE, read)]
    pid = os.posix_spawn(command[0], command, env, file_actions=actions)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    _, status, usage = os.wait4(pid, 0)  # of the process and of those that it has waited for
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_maxrss * 1024, text


def table(rows: list[dict[str, Any]], yardstick: float) -> str:
    lines = [f"import of torch and transformers: {yardstick:.1f} s (median)",
             "| plan | method | rungs | s | imports | from the cache, s | resident GiB |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        seconds = statistics.median(row["seconds"])
        lines.append(
            f"| {row['plan']} | {row['method']} | {row['rungs']} | {seconds:.1f} | "
            f"{seconds / yardstick:.1f} | {statistics.median(row['seconds_again']):.2f} | "
            f"{row['resident_bytes'] / GIB:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
