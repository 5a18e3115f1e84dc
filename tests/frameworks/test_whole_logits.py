"""The bytes for each logit that are counted where they exist whole, by real losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_dryrun_trace import run

from oomguard.adapters import trl_methods
from oomguard.job.unmodelled import TrainingMethod

COUNTED = {
    "orpo": trl_methods.WHOLE[TrainingMethod.ORPO],
    "cpo": trl_methods.WHOLE[TrainingMethod.CPO],
    "simpo": trl_methods.WHOLE[TrainingMethod.SIMPO],
    "simpo without words": trl_methods.without_words(trl_methods.WHOLE[TrainingMethod.SIMPO]),
}


def test_whole_logits_take_what_is_counted_in_a_real_step() -> None:
    script = Path(__file__).with_name("whole_logits.py")
    found = {one["name"]: one for one in json.loads(run("trl", str(script)).splitlines()[-1])}
    assert found.keys() == COUNTED.keys()
    for name, objective in COUNTED.items():
        one, counted = found[name], objective.logit_bytes
        assert (one["forward"], one["most"]) == pytest.approx(counted, rel=0.03), name


@pytest.mark.extended
@pytest.mark.timeout(3600)
def test_whole_logits_take_as_much_in_ms_swift() -> None:
    script = Path(__file__).with_name("swift_logits.py")
    found = {one["name"]: one for one in json.loads(run("swift", str(script)).splitlines()[-1])}
    for method in (TrainingMethod.DPO, TrainingMethod.ORPO, TrainingMethod.CPO):
        objective, one = trl_methods.WHOLE[method], found[method.value]
        forward, most = objective.logit_bytes or (0, 0)
        at_loss = forward + objective.reference_logit_bytes  # which stand beside the policy's
        assert (one["forward"], one["most"]) == pytest.approx((at_loss, most), rel=0.03), method
