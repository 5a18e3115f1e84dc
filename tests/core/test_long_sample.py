"""One long sample is named where it made a batch so large that it did not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generators import make_job
from oomguard.evidence.verdict import Finding, Kind, Verdict, Witness
from oomguard.job.plan import Plan
from oomguard.job.training_job import Lengths
from oomguard.run.attempt import AttemptSpec
from oomguard.run.long_sample import long_sample
from oomguard.run.state import Attempt, RunRecord

PLAN = Plan(micro_batch=2, accumulation=1)
LENGTHS = Lengths(
    samples=5,
    sorted_tokens=(90, 100, 110, 120, 3981),
    counted_by="the tokenizer",
    longest_at="train.json, sample 217",
)


def named(
    batch: tuple[int, ...] | None = (2, 4000),
    *,
    kind: Kind = Kind.DEVICE_OOM,
    limit: int | None = None,
    job: dict[str, object] | None = None,
    **lengths: object,
) -> str | None:
    found = Finding(witness=Witness.INSIDE, kind=kind, text="out of memory", batch=batch)
    plan = replace(PLAN, sequence_length=limit)
    attempt = Attempt(
        number=1, spec=AttemptSpec(plan=plan),
        verdict=Verdict(kind=kind, evidence=(found,)),
    )  # fmt: skip
    known = replace(LENGTHS, **lengths)
    asked = make_job(plan, **{"lengths": known, **(job or {})})
    return long_sample(RunRecord(run="r", version="0", job=asked), attempt)


def test_it_is_named_with_its_place_its_length_and_the_others():
    assert named() == (
        "the batch was 4000 tokens wide for one long sample: train.json, sample 217 has 3981 "
        "tokens, half of the samples at most 110 (counted by the tokenizer)"
    )


@pytest.mark.parametrize(
    ("batch", "limit"), [((1, 3400), None), ((4, 512), 512), ((8, 1024, 3981), None)]
)
def test_a_cut_or_a_guessed_length_is_enough(batch, limit):
    assert named(batch, limit=limit) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"batch": (2, 128)},  # an ordinary batch
        {"batch": None},
        {"batch": (64,)},
        {"kind": Kind.NOT_OOM},
        {"limit": 128, "batch": (2, 128)},  # every second sample is as long as the limit
        {"filled": True},  # packed
        {"sorted_tokens": (2000, 3000, 3981)},  # it does not stand out
        {"longest_at": None},  # of an earlier version's record
        {"job": {"lengths": None}},
        {"job": {"multimodal": True}},
    ],
)
def test_nothing_is_named_where_it_was_not_one_sample(other):
    assert named(**other) is None
