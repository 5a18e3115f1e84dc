"""What running steps again in parts, and counting, cost in a step when nothing fails.

    python benchmarks/overhead/in_place_step.py --python PYTHON_WITH_TRANSFORMERS

One process trains with the monitor. In every other step, in an order that alternates, what is
measured is switched off: `paired` is the median of the differences between neighbours, over the
median step. The machine may be busy, so the monitor's own CPU time is measured as well, around its
functions: `own` is its median in the steps that have it, over the median step (CPU time of the
thread in both). The clocks themselves cost about a microsecond a call, which `own` includes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from oomguard.monitor import add_monitor, in_place

TRAIN = """
import json, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from oomguard_monitor.count_hooks import Counting
from oomguard_monitor.in_place import Steps

what, steps, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
clock = time.thread_time
state = {"on": True, "own": 0.0, "depth": 0}

def timed(function, off, inner=None):
    def measured(self, *args, **others):
        if not state["on"]:
            return off(self, *args)
        begun, before = clock(), state["own"]
        if inner is not None:
            call = args[inner]
            def part(batch):
                state["own"] += clock() - part.begun
                try:
                    return call(batch)
                finally:
                    part.begun = clock()
            part.begun = begun
            try:
                return function(self, *args[:inner], part, *args[inner + 1:], **others)
            finally:
                state["own"] += clock() - part.begun
        state["depth"] += 1
        try:
            return function(self, *args, **others)
        finally:
            state["depth"] -= 1
            if not state["depth"]:
                state["own"] += clock() - begun
    return measured

if what == "in_place":
    Steps.begin = timed(Steps.begin, lambda *_: None)
    Steps.run = timed(Steps.run, lambda self, trainer, model, inputs, call: call(inputs), inner=3)
else:
    Counting.do = timed(Counting.do, lambda *_: None)

rows = []
class Measured(Trainer):
    begun = None
    def get_batch_samples(self, *args, **others):
        now = (time.perf_counter(), clock())
        if self.begun is not None:
            rows.append([state["on"], now[0] - self.begun[0], now[1] - self.begun[1], state["own"]])
        number = len(rows) + 1
        state.update(on=number % 4 in (0, 1), own=0.0)
        self.begun = (time.perf_counter(), clock())
        return super().get_batch_samples(*args, **others)

torch.manual_seed(0)
torch.set_num_threads(1)
config = LlamaConfig(
    hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, vocab_size=2048,
)
ids = torch.randint(0, 2048, (4 * (steps + 2), 128))
data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
arguments = TrainingArguments(
    output_dir=out, per_device_train_batch_size=4, max_steps=steps + 2, save_strategy="no",
    report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1000,
)
Measured(model=LlamaForCausalLM(config), args=arguments, train_dataset=data).train()
print(json.dumps({"torch": torch.__version__, "rows": rows}))
"""


def run(python: str, what: str, steps: int) -> dict[str, object]:
    """Train once; return the rows of all steps after the first four, and what they show."""
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        env = add_monitor(os.environ, socket=Path(folder) / "none", buffer=Path(folder))
        ended = subprocess.run(
            [python, "-c", TRAIN, what, str(steps), folder],
            env={**env, **in_place(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(ended.stdout.splitlines()[-1])
    rows = found["rows"][4:]
    return {"torch": found["torch"], **figures(rows), "rows": rows}


def figures(rows: list[list[float]]) -> dict[str, object]:
    """Return medians of pairs of neighbouring steps, one with and one without."""
    pairs = [
        (one, other) if one[0] else (other, one)
        for one, other in zip(rows[::2], rows[1::2], strict=False)
        if one[0] != other[0]
    ]
    step = [statistics.median(row[clock] for row in rows) for clock in (1, 2)]
    differences = [
        [(on[clock] - off[clock]) / step[clock - 1] for on, off in pairs] for clock in (1, 2)
    ]
    paired = [statistics.median(them) for them in differences]
    own = statistics.median(row[3] for row in rows if row[0])
    return {
        "pairs": len(pairs),
        "step_seconds": {"wall": step[0], "cpu": step[1]},
        "paired": {"wall": paired[0], "cpu": paired[1]},
        "paired_interval_95": {"wall": _interval(differences[0]), "cpu": _interval(differences[1])},
        "own_seconds": own,
        "own": own / step[1],
    }


def _interval(differences: list[float]) -> tuple[float, float]:
    """Return the bootstrap interval of 95 % of a median."""
    draw, count = random.Random(0), len(differences)
    medians = sorted(statistics.median(draw.choices(differences, k=count)) for _ in range(2000))
    return medians[50], medians[-50]


def main() -> None:
    """Measure both, print the figures and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with transformers")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    machine = {
        "cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system(),
        "load": os.getloadavg(),
    }  # fmt: skip
    results = {}
    for what in ("in_place", "counting"):
        results[what] = run(options.python, what, options.steps)
        options.out.write_text(json.dumps({"machine": machine, **results}) + "\n")
        shown = {key: value for key, value in results[what].items() if key != "rows"}
        print(what, json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
