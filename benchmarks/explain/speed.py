"""Measure how fast logs are read, in CPU time: `python benchmarks/explain/speed.py [MB]`.

Three made logs: the Trainer's lines of loss, a progress bar with a loss, and lines that all hold a
word that the reader looks for. Then `oomguard explain` itself on a file of 1 GB, in which such
lines take turns and that ends with an OOM. Writes speed.json: MB per second of one core, and the
peak memory; of the file that of the whole process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from oomguard.evidence.judge import judge_log  # noqa: E402  found through the path above

LOGS = {
    "loss": "{'loss': 1.%04d, 'grad_norm': 0.71, 'learning_rate': 4.9e-05, 'epoch': 0.%04d}\n",
    "bar": "\r %d%%|####      | %d/40000 [00:01<00:09, 9.9it/s, loss=1.25]",
    "memory": "2024-06-28 18:34:47 I Batch %d Loss: 11.6, lr: 0.000049, memory 22.%d GiB, Max_MA\n",
}


def chunks(form: str, size_bytes: int) -> Iterator[bytes]:
    block = "".join(form % (i % 10_000, i % 97) for i in range(20_000)).encode()
    for _ in range(size_bytes // len(block) + 1):
        yield block


WHOLE_BYTES = 10**9
OOM = b"""Traceback (most recent call last):
  File "/x/site-packages/transformers/trainer.py", line 3736, in training_step
    self.accelerator.backward(loss, **kwargs)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.00 GiB is free.
"""  # noqa: E501 -- a message is one line


def whole_file() -> dict[str, object]:
    """Return what `oomguard explain` takes for a file of 1 GB."""
    with tempfile.TemporaryDirectory() as folder:
        log, written = Path(folder) / "log.txt", 0
        with log.open("wb") as file:
            while written < WHOLE_BYTES:
                for form in LOGS.values():
                    written += sum(file.write(block) for block in chunks(form, 1))
            file.write(OOM)
        size_bytes = log.stat().st_size
        command = [sys.executable, "-m", "oomguard", "explain", "--json", str(log)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")}
        told = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    verdict = json.loads(told)
    return {
        "MB": round(size_bytes / 1e6),
        "MB_per_s": round(size_bytes / 1e6 / (took.ru_utime + took.ru_stime), 1),
        "peak_rss_MB": round(took.ru_maxrss * 1024 / 1e6),
        "verdict": verdict["kind"],
        "line": verdict["evidence"][0]["line"],
    }


def main() -> None:
    size_bytes = (int(sys.argv[1]) if len(sys.argv) > 1 else 50) * 10**6
    rows: dict[str, dict[str, object]] = {}
    for name, form in LOGS.items():
        whole = sum(len(chunk) for chunk in chunks(form, size_bytes))
        begin = time.process_time()
        judge_log(chunks(form, size_bytes), 1)
        took = time.process_time() - begin
        tracemalloc.start()
        judge_log(chunks(form, 4 * 10**6), 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows[name] = {"MB": round(whole / 1e6), "MB_per_s": round(whole / 1e6 / took, 1)}
        rows[name]["peak_MB_with_a_block"] = round(peak / 1e6, 1)
        print(name, rows[name])
    rows["1 GB file"] = whole_file()
    print("1 GB file", rows["1 GB file"])
    (HERE / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
