"""Batches that a probe lengthens: real tensors, as the frameworks' collators make them."""

from __future__ import annotations

import json

import pytest
from environments import environment

from monitored_job import run_job

pytestmark = pytest.mark.frameworks

JOB = """
import json, torch
from torch.utils.data import DataLoader
from oomguard_monitor.trial_hooks import ProbeHook

def shown(batch):
    return {name: value.tolist() for name, value in batch.items()}

def taken(batch, tokens, limit=None):
    probe = ProbeHook(2, tokens)
    if limit:
        probe.limit(limit)
    probe.take(batch, torch)
    return {**shown(batch), "longest": probe.longest}

text = dict(
    input_ids=torch.tensor([[9, 7, 8], [9, 6, 0]]),
    labels=torch.tensor([[-100, 7, 8], [-100, 6, -100]]),
    attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
)
media = dict(
    input_ids=torch.tensor([[5, 5, 7]]),
    labels=torch.tensor([[-100, -100, 7]]),
    position_ids=torch.tensor([[[0, 1, 2]], [[0, 0, 1]], [[0, 1, 2]]]),
    mm_token_type_ids=torch.tensor([[1, 1, 0]]),
    pixel_values=torch.ones(4, 3),
)
copies = lambda batch: {name: value.clone() for name, value in batch.items()}
found = dict(
    text=taken(copies(text), 6),
    media=taken(copies(media), 5),
    enough=taken(copies(text), 2),
    limited=taken(copies(text), 9, limit=4),
)
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
for (number, batch) in enumerate(DataLoader([{"input_ids": [1, 2]}] * 8, batch_size=2,
        collate_fn=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])})):
    found[f"step {number}"] = list(batch["input_ids"].shape)
    print(json.dumps(found), flush=True)
    (weight * batch["input_ids"].sum()).backward()
    optimizer.step()
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    env = {"OOMGUARD_PROBE_STEPS": "2", "OOMGUARD_PROBE_LENGTH": "16", "CUDA_VISIBLE_DEVICES": ""}
    folder = tmp_path_factory.mktemp("probe")
    return run_job(folder, JOB, python=environment("hf"), env=env, timeout_s=300)


@pytest.fixture(scope="module")
def found(ended):
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out.splitlines()[-1])


def test_added_tokens_are_attended_to_and_have_labels(found):
    text = found["text"]
    assert text["input_ids"] == [[9, 7, 8, 7, 7, 7], [9, 6, 0, 7, 7, 7]]
    assert text["labels"][0] == [-100, 7, 8, 7, 7, 7]
    assert text["attention_mask"][0] == [1] * 6
    assert text["longest"] == 6


def test_a_padded_batch_keeps_a_mask(found):
    text = found["text"]
    assert text["attention_mask"][1] == [1, 1, 0, 1, 1, 0]
    assert text["labels"][1] == [-100, 6, -100, 7, 7, -100]


def test_media_stay_and_positions_go_on(found):
    media = found["media"]
    assert media["input_ids"] == [[5, 5, 7, 7, 7]]
    assert media["position_ids"] == [[[0, 1, 2, 3, 4]], [[0, 0, 1, 2, 3]], [[0, 1, 2, 3, 4]]]
    assert media["mm_token_type_ids"] == [[1, 1, 0, 0, 0]]
    assert media["pixel_values"] == [[1.0] * 3] * 4


def test_what_is_long_enough_stays_and_a_limit_of_the_model_holds(found):
    assert found["enough"]["input_ids"] == [[9, 7, 8], [9, 6, 0]]
    assert found["limited"]["longest"] == 4


def test_batches_are_lengthened_as_they_are_fetched_and_the_job_ends_after_two(ended, found):
    assert (found["step 0"], found["step 1"], "step 2" in found) == ([2, 16], [2, 16], False)
    (probe,) = ended.of("probe")
    assert (probe["step"], probe["longest"]) == (2, 16)
    assert [step["shapes"]["input_ids"] for step in ended.of("step")] == [[2, 16], [2, 16]]
