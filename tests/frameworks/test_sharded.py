"""Sharded plans against real ranks: two over gloo, and every byte of their tensors counted.

All cases: benchmarks/prediction/sharded.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sharded_cases import CASES
from sharded_truth import compared
from test_dryrun_trace import run

NAMES = ("ddp full", "zero2 full", "zero3 lora", "fsdp2 full")
CHOSEN = [case for case in CASES if case.name in NAMES]

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="what counts the bytes of tensors is compiled"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    found = compared(CHOSEN, tmp_path_factory.mktemp("ranks"))
    return {row["name"]: row for row in found}


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_is_counted_to_the_percent(rows, name):
    measured, predicted = rows[name]["measured"], rows[name]["predicted"]
    for term in ("weights", "gradients", "optimizer"):
        assert predicted[term] == pytest.approx(measured[term], rel=0.01), term


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_of_a_rank_is_the_one_predicted(rows, name):
    assert abs(rows[name]["error"]) < 0.03


@pytest.mark.extended
def test_accelerate_autocasts_and_raises_logits_and_deepspeed_does_neither():
    script = str(Path(__file__).with_name("deepspeed_dtypes.py"))
    plain, zero = (
        json.loads(run("llamafactory", script, way).splitlines()[-1])
        for way in ("accelerate", "deepspeed")
    )
    wide, half = "torch.float32", "torch.bfloat16"
    assert plain == {
        "autocast": True, "weights": wide, "hidden": wide, "logits": half, "returned": wide,
    }  # fmt: skip
    assert zero == {
        "autocast": False, "weights": half, "hidden": half, "logits": half, "returned": half,
    }  # fmt: skip
