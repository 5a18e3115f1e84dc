"""TRL's own losses: traced, and against its trainers' real steps on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

pytestmark = pytest.mark.frameworks


def test_a_real_step_peaks_within_three_percent_of_its_trace() -> None:
    script = Path(__file__).with_name("trl_truth.py")
    found = json.loads(run("trl", str(script)).splitlines()[-1])
    assert len(found) >= 20
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.03), case["name"]
