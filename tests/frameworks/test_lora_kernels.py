"""axolotl's LoRA kernels take in real steps on the CPU what the arithmetic is tested against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

# Its environment is not built beforehand.
pytestmark = [pytest.mark.extended, pytest.mark.timeout(1800)]
KEPT = Path(__file__).parents[1] / "data" / "lora_kernels.json"


def test_real_steps_take_what_was_measured() -> None:
    script = Path(__file__).with_name("lora_kernels_truth.py")
    found = json.loads(run("axolotl", str(script)).splitlines()[-1])
    kept = {row["name"]: row for row in json.loads(KEPT.read_text())}  # tests/core reads it
    assert {row["name"] for row in found} == kept.keys()
    for row in found:
        assert "error" not in row, (row["name"], row.get("error"))
        for key in ("kept_bytes", "peak_bytes"):
            assert row[key] == pytest.approx(kept[row["name"]][key], rel=0.01), row["name"]
