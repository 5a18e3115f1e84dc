"""Step time of a training loop with and without the monitor, interleaved.

    python benchmarks/overhead/monitor_step.py --python PYTHON_WITH_TORCH

Four processes train the same model: `with` the monitor, `uncounted` with the monitor but without
what counts samples, `without` it, and `control`, also without it. They take turns, a block of steps
each, so that other load on the machine affects all of them; the order rotates. The four are
restarted several times, since memory layout differs between processes. A ratio is the median over
the turns of (time with) / (time without), for wall clock and for CPU time of the training process;
that of the control shows the noise. `counting` is (time with) / (time uncounted).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from oomguard.monitor import add_monitor

NAMES = ["with", "uncounted", "without", "control"]
MONITORED = ("with", "uncounted")
TRAIN = """
import sys, time
if sys.argv[3] == "uncounted":
    import oomguard_monitor.install as install
    from types import SimpleNamespace
    nothing = lambda *_: None
    counting = SimpleNamespace(
        stop=nothing, window=nothing, stepped=nothing, do=lambda f, *args: f(*args)
    )
    install.hook_counting, install.hook_backward = lambda *_: counting, nothing
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
width, block = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())))
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
data = TensorDataset(torch.randn(64 * block, width))
def steps():
    for (batch,) in DataLoader(data, batch_size=64):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
steps()
print(torch.__version__, flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    steps()
    print((time.perf_counter() - wall) / block, (time.process_time() - cpu) / block, flush=True)
"""


class Trainer:
    """One training process that runs a block of steps when told."""

    def __init__(self, python: str, width: int, block: int, name: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [python, "-c", TRAIN, str(width), str(block), name],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.torch = self._read()

    def run(self) -> tuple[float, float]:
        """Run a block; return wall and CPU seconds of one step."""
        print(file=self._process.stdin, flush=True)
        wall, cpu = self._read().split()
        return float(wall), float(cpu)

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def supervisor() -> Iterator[dict[str, str]]:
    """Read what the monitor sends; yield the environment of a job with it."""
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        path = Path(folder) / "socket"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=_drain, args=(server,))
        thread.start()
        yield add_monitor(os.environ, socket=path, buffer=Path(folder))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def _drain(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 16):
                    pass


def trio_of(
    python: str, width: int, block: int, turns: int
) -> tuple[str, list[dict[str, list[float]]]]:
    """Run one trio of processes for some turns."""
    base = dict(os.environ, OMP_NUM_THREADS="1")
    with supervisor() as inside:
        trio = {
            name: Trainer(python, width, block, name, base | (inside if name in MONITORED else {}))
            for name in NAMES
        }
        rows = []
        for turn in range(turns):
            order = NAMES[turn % 4 :] + NAMES[: turn % 4]
            rows.append({name: list(trio[name].run()) for name in order})
        torch = trio["with"].torch
        for trainer in trio.values():
            trainer.close()
    return torch, rows


def compare(
    rows: list[dict[str, list[float]]], name: str, clock: int, base: str = "without"
) -> dict[str, float]:
    """Compare one process with another, which is the one without the monitor."""
    ratios = [row[name][clock] / row[base][clock] for row in rows]
    added = [row[name][clock] - row[base][clock] for row in rows]
    return {"ratio": statistics.median(ratios), "added_seconds": statistics.median(added)}


def measure(python: str, width: int, block: int, trios: int, turns: int) -> dict[str, object]:
    """Measure one size of model."""
    rows = []
    torch = ""
    for _ in range(trios):
        torch, more = trio_of(python, width, block, turns)
        rows += more
    step = [statistics.median(row["without"][clock] for row in rows) for clock in (0, 1)]
    return {
        "width": width,
        "steps_per_block": block,
        "trios": trios,
        "turns_per_trio": turns,
        "torch": torch,
        "step_seconds": {"wall": step[0], "cpu": step[1]},
        "with": {"wall": compare(rows, "with", 0), "cpu": compare(rows, "with", 1)},
        "control": {"wall": compare(rows, "control", 0), "cpu": compare(rows, "control", 1)},
        "counting": {
            "wall": compare(rows, "with", 0, "uncounted"),
            "cpu": compare(rows, "with", 1, "uncounted"),
        },
        "turns": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--trios", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    results = [
        measure(options.python, width, block, options.trios, options.turns)
        for width, block in ((768, 10), (64, 400))
    ]
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    for result in results:
        print(f"step of {result['step_seconds']['wall'] * 1e3:.2f} ms")
        for name in ("with", "counting", "control"):
            wall, cpu = result[name]["wall"], result[name]["cpu"]
            print(
                f"  {name:8} {wall['ratio']:.4f} (wall) {cpu['ratio']:.4f} (CPU), "
                f"{cpu['added_seconds'] * 1e6:+.0f} us CPU a step"
            )


if __name__ == "__main__":
    main()
