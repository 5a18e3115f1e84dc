"""Shared makers of nouns: a job, a plan, a walk over the real ladder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st

from oomguard.checkpoint import Mode
from oomguard.discover import load_strategies, select
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job import Device, Job, World
from oomguard.ladder import Framework, Ladder, Rung
from oomguard.plan import Part, Plan, Precision, Quantization, Sharding, Tuning
from oomguard.strategy import Fidelity

OPEN = Framework(
    settle=lambda _job, plan: plan,
    refuses=lambda _job, _plan: None,
    needs=lambda _job, _plan: frozenset(),
    keeps=lambda _job, _before, _after: (Mode.FULL, ""),
)


def make_job(asked: Plan | None = None, **fields: object) -> Job:
    values: dict[str, object] = {
        "framework": "llamafactory",
        "argv": ("llamafactory-cli", "train", "train.yaml"),
        "cwd": "/job",
        "config": None,
        "asked": asked or Plan(micro_batch=16, accumulation=1),
        "packages": frozenset({"deepspeed", "bitsandbytes"}),
        **fields,
    }
    return Job(**values)  # type: ignore[arg-type]


def make_ladder(allow: Fidelity = Fidelity.NEW_RECIPE, ladder: str | None = None) -> Ladder:
    return Ladder(strategies=select(load_strategies(), ladder), framework=OPEN, allow=allow)


plans = st.builds(
    Plan,
    micro_batch=st.integers(1, 96),
    accumulation=st.integers(1, 48),
    sequence_length=st.none() | st.integers(1, 1 << 17),
    precision=st.none() | st.sampled_from(Precision),
    quantization=st.none() | st.sampled_from(Quantization),
    tuning=st.none() | st.sampled_from(Tuning),
    frozen=st.none() | st.frozensets(st.sampled_from(Part)),
    sharding=st.none() | st.sampled_from(Sharding),
    low_cpu_mem_usage=st.none() | st.booleans(),
    eval_batch=st.none() | st.integers(1, 64),
    auto_find_batch_size=st.none() | st.booleans(),
)
jobs = st.builds(
    lambda asked, nodes, per_node, device, multimodal: make_job(
        asked, world=World(nodes=nodes, per_node=per_node), device=device, multimodal=multimodal
    ),
    plans,
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from(Device),
    st.booleans(),
)
failures = st.builds(
    Verdict,
    kind=st.sampled_from([kind for kind in Kind if kind.is_memory]),
    phase=st.sampled_from(Phase),
)


@dataclass(frozen=True)
class Walk:
    """Climb a ladder until nothing is left; `why` names the failure of each attempt."""

    job: Job
    ladder: Ladder

    def rungs(self, why: Callable[[int], Verdict], most: int = 400) -> list[Rung]:
        plan, _ = self.ladder.prepare(self.job)
        tried, taken, rungs = [plan], [], []
        for number in range(most):
            rung = self.ladder.climb(self.job, tried, taken, why(number))
            rungs.append(rung)
            if rung.plan is None or rung.step is None:
                return rungs
            tried.append(rung.plan)
            taken.append(rung.step.strategy)
        pytest.fail(f"the walk did not end after {most} rungs")


__all__ = ["Walk", "failures", "jobs", "make_job", "make_ladder", "plans", "replace"]
