from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.peft_loftq import PeftLoftq
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Loftq, Quantization, Tuning
from oomguard.ladder.load import load_strategies

STAGED = "python train.py --init_lora_weights loftq --loftq_bits 8 --loftq_iter 3 --staged False"


def test_loftq_is_staged_with_the_base_and_the_bits_that_it_needs(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(PeftLoftq())
    job = table.job(STAGED)
    assert (job.asked.loftq, job.asked.quantization) == (Loftq.AT_ONCE, Quantization.NONE)
    assert job.asked.tuning is Tuning.LORA
    (strategy,) = (s for s in load_strategies() if s.id == "stage_loftq")
    changed = strategy.change(job, job.asked)
    assert changed is not None
    plan = table.adapter.normalize(job, changed)
    assert (plan.loftq, plan.quantization) == (Loftq.STAGED, Quantization.NF4)
    assert table.adapter.refusal(job, plan) is None
    assert table.adapter.required_packages(job, plan) == {"bitsandbytes"}
    command = table.adapter.write(job, plan, folder)
    words = "--init_lora_weights loftq --loftq_bits 4 --loftq_iter 1 --staged True"
    assert command.argv == ("python", "train.py", *words.split())
    assert table.reread(job, command).asked == plan
    assert isinstance(strategy.change(job, plan), str)
    assert strategy.cures(job, Verdict(kind=Kind.HOST_OOM, phase=Phase.LOAD))
    assert not strategy.cures(job, Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD))


@pytest.mark.parametrize(
    ("argv", "change", "message"),
    [
        ("python train.py --loftq_bits 4", {"loftq": Loftq.STAGED}, "has no --staged"),
        (STAGED, {"loftq": Loftq.STAGED}, "in stages it needs one in NF4"),
        (STAGED, {"quantization": Quantization.NF4}, "needs the unquantized model"),
        (STAGED, {"quantization": Quantization.NF4_DOUBLE}, "no setting for quantization"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    bench: Callable[..., Any], argv: str, change: dict[str, Any], message: str
) -> None:
    job = bench(PeftLoftq()).job(argv)
    assert PeftLoftq().refusal(job, job.asked) is None
    assert message in (PeftLoftq().refusal(job, replace(job.asked, **change)) or "")
