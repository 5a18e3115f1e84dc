"""Embeddings, head and norms in fp32 beside matrices in bf16: traced peaks against real steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

pytestmark = [pytest.mark.frameworks, pytest.mark.extended, pytest.mark.timeout(1800)]


def test_a_real_step_peaks_within_three_percent_of_its_trace() -> None:
    script = Path(__file__).with_name("raised_truth.py")
    found = json.loads(run("hf", str(script)).splitlines()[-1])
    assert len(found) >= 5
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.03), case["name"]
