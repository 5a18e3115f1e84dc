"""Optimizers as the Trainer makes them: their traced peaks against real steps on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run
from tiny_models import LLAMA

from oomguard.estimate.analytic import EstimateInput
from oomguard.estimate.architecture import from_config
from oomguard.estimate.optimizer_memory import state_bytes
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.optimizer import ADAM_MINI, MUON_AND_ADAMW, low_rank
from oomguard.job.plan import Plan, Precision, Tuning

RANK = 16  # as in states_truth.py

pytestmark = [pytest.mark.frameworks, pytest.mark.extended]


def test_a_real_step_of_each_optimizer_peaks_within_three_percent_of_its_trace() -> None:
    script = Path(__file__).with_name("optimizer_truth.py")
    found = json.loads(run("optimizers", str(script)).splitlines()[-1])
    assert len(found) >= 21
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.03), case["name"]


def test_states_that_save_memory_are_counted_as_the_packages_keep_them() -> None:
    script = str(Path(__file__).with_name("states_truth.py"))
    real = json.loads(run("optimizers", script).splitlines()[-1])
    real |= json.loads(run("llamafactory", script, "muon").splitlines()[-1])
    counted = {
        "galore": low_rank(RANK), "apollo": low_rank(RANK), "adam_mini": ADAM_MINI,
        "muon": MUON_AND_ADAMW,
    }  # fmt: skip
    assert counted.keys() == real.keys()
    for name, states in counted.items():
        plan = Plan(
            micro_batch=1, accumulation=1, tuning=Tuning.FULL, precision=Precision.BF16_TRUE
        )
        recipe = MemorySettings(states=states)
        problem = EstimateInput(model=from_config(LLAMA), plan=plan, recipe=recipe)
        size = state_bytes(problem) * problem.counts.trained
        assert size == pytest.approx(real[name], rel=0.03), name
