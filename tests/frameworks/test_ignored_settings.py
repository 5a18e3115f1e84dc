"""A script that ignores its arguments, with no DataLoader and no module that could be watched."""

from __future__ import annotations

import os
from types import SimpleNamespace

from environments import environment
from launched import launch

#: Each step takes 320 MiB at once, whatever is asked of it.
SCRIPT = """
import torch
torch.set_num_threads(1)
weight = torch.zeros(64, 64, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(3):
    ballast = torch.empty(16, 5 << 20)
    ((torch.randn(16, 64) @ weight).square().mean() + ballast.numel() * 0).backward()
    optimizer.step()
"""
LADDER = ("--ladder", "halve_micro_batch,gradient_checkpointing,cut_cutoff_len,bf16_for_fp32")
SIZES = ("--per_device_train_batch_size", "16", "--max_length", "512")


def test_no_change_without_effect_is_repeated(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    job = SimpleNamespace(folder=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    words = (str(environment("hf")), "train.py", *SIZES)
    found = launch(job, "--host-memory", "400MiB", *LADDER, "--", *words)
    assert found.code == 3, found.err
    assert found.micro_batches == [16, 8, 8]
    assert {one["verdict"]["requested_bytes"] for one in found.attempts} == {320 << 20}
    assert [one["plan"]["precision"] for one in found.attempts][-2:] == ["fp32", "bf16-mixed"]
    assert "halve_micro_batch had no effect: attempts 1 and 2 failed at the same" in found.err
    assert "none of 2 changes had an effect on the allocation of 320.00 MiB" in found.err
