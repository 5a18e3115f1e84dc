"""Two ranks of a torchrun over gloo: one or both run out of memory, and neither waits for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from environments import environment

from monitored_job import run_job

HERE = Path(__file__).parent
#: The largest difference from a run without limits, relative, and of the weights.
SAME, SAME_WEIGHTS = 1e-6, 2e-6
#: Cases and the split steps of each rank.
QUICK = {"outlier_on_one": (0, 1), "outlier_on_both": (1, 1), "in_a_later_micro_batch": (0, 2)}
MORE = {
    "fixed_on_both": (3, 3), "one_without_room": (0, 3), "uneven_on_both": (3, 3),
    "mean_on_both": (3, 3), "checkpointing_on_both": (0, 1), "lora_on_both": (1, 1),
}  # fmt: skip


def trained(folder, *names):
    """Run cases on two ranks with the monitor; return how they ended and what differed."""
    ended = run_job(
        folder,
        f"import runpy, sys; sys.argv[1:] = {names!r}; sys.path.insert(0, {str(HERE)!r})\n"
        f"runpy.run_path({str(HERE / 'split_ranks.py')!r}, run_name='__main__')",
        python=environment("hf"),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        env={
            "OOMGUARD_IN_PLACE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "MALLOC_MMAP_THRESHOLD_": "262144",
        },
        timeout_s=900,
    )  # fmt: skip
    found = [line for line in ended.out.splitlines() if line.startswith('{"')]
    return ended, json.loads(found[-1]) if found else {}


def hold(ended, found, expected):
    assert ended.code == 0, ended.err[-3000:]
    assert "fault" not in ended.types
    for name, split in expected.items():
        assert tuple(rank["split"] for rank in found[name]) == split, name
        for rank in found[name]:
            assert max(rank["loss"], rank["grad_norm"]) < SAME, name
            assert rank["weights"] < SAME_WEIGHTS, name


def test_an_outlier_on_one_rank_and_on_both_gives_the_gradients_of_a_run_without_limits(tmp_path):
    ended, found = trained(tmp_path, *QUICK)
    hold(ended, found, QUICK)
    assert found["outlier_on_one"][1]["reports"] == [
        {"failed": 1, "parts": 2, "rows": 1, "width": 256}
    ]


@pytest.mark.extended
def test_so_do_fixed_lengths_means_adapters_and_checkpointing(tmp_path):
    hold(*trained(tmp_path, *MORE), MORE)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("single_row", "DefaultCPUAllocator: can't allocate memory"),
        ("fails", "a mistake of the job's own"),
        ("killed", "Signal 9"),
    ],
)
def test_a_rank_that_ends_ends_the_job_with_its_own_error(tmp_path, name, root):
    ended, found = trained(tmp_path, name)
    assert ended.code != 0
    assert not found
    assert root in ended.err
