"""Shared makers of nouns: a job, a plan, a walk over the real ladder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st

from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.checkpoint import Mode
from oomguard.job.plan import (
    Allocator,
    DeviceMap,
    EmbeddingRows,
    LossKernel,
    Offload,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job, Lengths, World
from oomguard.ladder.climb import Framework, Ladder, Rung
from oomguard.ladder.load import load_strategies, select
from oomguard.strategy import Fidelity

OPEN = Framework(
    normalize=lambda _job, plan: plan,
    refusal=lambda _job, _plan: None,
    required_packages=lambda _job, _plan: frozenset(),
    resume_mode=lambda _job, _before, _after: (Mode.FULL, ""),
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
    overlong=st.none() | st.sampled_from(Overlong),
    image_pixels=st.none() | st.integers(1, 1 << 21),
    video_pixels=st.none() | st.integers(1, 1 << 21),
    checkpointing=st.none() | st.booleans(),
    precision=st.none() | st.sampled_from(Precision),
    quantization=st.none() | st.sampled_from(Quantization),
    tuning=st.none() | st.sampled_from(Tuning),
    lora_rank=st.none() | st.integers(1, 256),
    embedding_rows=st.none() | st.sampled_from(EmbeddingRows),
    frozen=st.none() | st.frozensets(st.sampled_from(Part)),
    sharding=st.none() | st.sampled_from(Sharding),
    offload=st.none() | st.frozensets(st.sampled_from(Offload)),
    optimizer=st.none() | st.sampled_from(["adamw_torch", "AdamW", "adamw_8bit", "adafactor"]),
    loss_kernel=st.none() | st.sampled_from(LossKernel),
    loader_workers=st.none() | st.integers(0, 16),
    pin_memory=st.none() | st.booleans(),
    preprocess_workers=st.none() | st.integers(0, 64),
    allocator=st.none() | st.sampled_from(Allocator),
    low_cpu_mem_usage=st.none() | st.booleans(),
    device_map=st.none() | st.sampled_from(DeviceMap),
    eval_batch=st.none() | st.integers(1, 64),
    eval_accumulation=st.none() | st.integers(0, 8),
    prediction_loss_only=st.none() | st.booleans(),
    auto_find_batch_size=st.none() | st.booleans(),
    token_bound=st.none() | st.integers(1, 1 << 20),
)
jobs = st.builds(
    lambda asked, nodes, per_node, **fields: make_job(
        asked, world=World(nodes=nodes, per_node=per_node), **fields
    ),
    plans,
    st.integers(1, 3),
    st.integers(1, 8),
    device=st.sampled_from(Device),
    multimodal=st.booleans(),
    divides=st.booleans(),
    bfloat16=st.booleans(),
    hopper=st.booleans(),
    trained_embeddings=st.sampled_from([(), ("embed_tokens", "lm_head")]),
    lengths=st.none()
    | st.builds(
        Lengths,
        samples=st.just(4),
        sorted_tokens=st.lists(st.integers(1, 1 << 14), min_size=1, max_size=4).map(
            lambda tokens: tuple(sorted(tokens))
        ),
        counted_by=st.just("a guess"),
        least=st.integers(0, 1 << 12),
        filled=st.booleans(),
    ),
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
