"""The losses of TRL and LLaMA-Factory: traced, and against their trainers' real CPU steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

#: One of each method; the others are variants of them.
FEW = {
    "trl": ("trl sft dft", "trl dpo lora", "trl kto full", "trl reward lora"),
    "llamafactory": (
        "llamafactory dpo lora",
        "llamafactory kto full",
        "llamafactory rm lora",
        "llamafactory sft dft full",
    ),
}
EVERY = 20


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_a_real_step_peaks_within_three_percent_of_its_trace(name, every) -> None:
    cases = () if every else FEW[name]
    script = Path(__file__).with_name(f"{name}_truth.py")
    found = json.loads(run(name, str(script), *cases).splitlines()[-1])
    assert len(found) >= (EVERY if every else len(cases))
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.03), case["name"]
