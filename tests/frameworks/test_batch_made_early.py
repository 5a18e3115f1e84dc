"""A batch that takes more to make than to train on: half of it fits, wherever it is made."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from environments import environment
from launched import launch

#: Each sample takes 40 MiB while its batch is made, in the loader, in a worker of it, or in a
#: generator of the job's own before the first forward pass.
SCRIPT = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int, default=16)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
parser.add_argument("--made_in")
given = parser.parse_args()
size, made_in = given.per_device_train_batch_size, given.made_in
torch.set_num_threads(1)
def collate(rows):
    torch.zeros(len(rows), 10 << 20)
    return torch.stack(rows)
rows = [torch.randn(64) for _ in range(32)]
def generate():
    for begin in range(0, len(rows), size):
        yield collate(rows[begin : begin + size])
workers = 1 if made_in == "worker" else 0
loader = torch.utils.data.DataLoader(rows, size, collate_fn=collate, num_workers=workers)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(generate() if made_in == "generator" else loader, start=1):
    (model(batch).square().mean() / given.gradient_accumulation_steps).backward()
    if number % given.gradient_accumulation_steps == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
LADDER = ("--ladder", "fewer_loader_workers,halve_micro_batch,low_cpu_mem_usage", "--no-relax")


@pytest.mark.parametrize(
    ("made_in", "phase", "known"),
    [
        pytest.param("collate", "batch", True, marks=pytest.mark.extended),
        ("generator", "load", False),
        pytest.param("worker", "batch", True, marks=pytest.mark.extended),
    ],
)
def test_the_batch_is_halved(tmp_path: Path, made_in, phase, known):
    (tmp_path / "job.py").write_text(SCRIPT)
    job = SimpleNamespace(folder=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    words = (str(environment("hf")), "job.py", "--per_device_train_batch_size", "16")
    found = launch(job, "--host-memory", "800MiB", *LADDER, "--", *words, "--made_in", made_in)
    assert found.code == 0, found.err[-3000:]
    first, last = found.attempts[0], found.attempts[-1]
    assert (first["verdict"]["phase"], first["verdict"]["phase_known"]) == (phase, known)
    assert first["verdict"]["requested_bytes"] == 16 * 40 << 20
    assert len(found.attempts) == 2
    assert (last["plan"]["micro_batch"], last["plan"]["accumulation"]) == (8, 2)
