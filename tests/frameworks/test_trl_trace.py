"""TRL's own losses: traced, and against its trainers' real steps on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

pytestmark = pytest.mark.frameworks


#: One of each method; the others are variants of them.
FEW = ("trl sft dft", "trl dpo lora", "trl kto full", "trl reward lora")
EVERY = 20


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("cases", "least"),
    [
        pytest.param(FEW, len(FEW), id="few"),
        pytest.param((), EVERY, id="every", marks=pytest.mark.extended),
    ],
)
def test_a_real_step_peaks_within_three_percent_of_its_trace(cases, least) -> None:
    script = Path(__file__).with_name("trl_truth.py")
    found = json.loads(run("trl", str(script), *cases).splitlines()[-1])
    assert len(found) >= least
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.03), case["name"]
