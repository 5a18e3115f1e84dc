"""A hand-written loop that runs out of memory under a real limit, with `oomguard.torch`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import environment

import oomguard

SCRIPT = Path(__file__).with_name("hand_written.py")
SAME = 1e-6
TRAINED = ("tokens", "rows", "accumulated", "tuples", "outlier")
RAISED = {
    "compared": "the loss of a batch does not add up from that of its rows",
    "single_row": "a single row does not fit",
    "wrong_weights": "the loss adds up as 'rows', not as 'sum'",
}


def run(*launcher: str) -> list[dict[str, dict[str, object]]]:
    """Run the loop without a supervisor or a monitor; return what each rank printed."""
    ended = subprocess.run(
        [environment("hf"), *launcher, SCRIPT],
        env={
            **os.environ, "PYTHONPATH": str(Path(oomguard.__file__).parents[1]),
            "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"')]


@pytest.fixture(scope="module")
def found():
    return run()[0]


@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_gradients_are_those_of_a_run_without_a_limit(found, name):
    assert found[name]["differs"] < SAME
    assert found[name]["limit"] > 0


@pytest.mark.parametrize("name", RAISED)
def test_what_cannot_be_divided_raises_the_error_of_the_loop_with_the_reason(found, name):
    assert "DefaultCPUAllocator: can't allocate memory" in found[name]["error"]
    assert RAISED[name] in found[name]["cause"]


@pytest.mark.extended
def test_one_of_two_ranks_runs_out_of_memory_and_both_get_the_same_gradients():
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ranks = run(*launcher)
    assert len(ranks) == 2
    for name in ranks[0]:
        assert max(rank[name]["differs"] for rank in ranks) < SAME, name
        assert sorted(bool(rank[name]["limit"]) for rank in ranks) == [False, True], name
