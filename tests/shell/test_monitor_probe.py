"""The probe inside the job, without torch: when it ends the job, and what it says."""

from __future__ import annotations

import pytest

from monitored_job import fake_torch, run_job

JOB = """
import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter
optimizer = torch.optim.SGD()
try:
    for number, batch in enumerate(_BaseDataLoaderIter([{"x": 1}] * 5)):
        torch.autograd.backward()
        optimizer.step()
        print("step", number + 1, flush=True)
except Exception:
    print("caught")
finally:
    print("cleaned up")
print("trained")
"""


@pytest.fixture
def job(tmp_path):
    fake_torch(tmp_path)
    return lambda **env: run_job(tmp_path, JOB, env=env)


def test_the_job_ends_in_good_order_behind_its_last_step(job):
    ended = job(OOMGUARD_PROBE_STEPS="2")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == ["step 1", "cleaned up"]
    assert ended.types[-3:] == ["step", "probe", "bye"]
    (probe,) = ended.of("probe")
    assert (probe["step"], probe["tokens"], probe["longest"]) == (2, None, None)
    assert probe["memory"]["peak_rss_bytes"] > 0


def test_batches_of_another_shape_stay_as_they_are(job):
    ended = job(OOMGUARD_PROBE_STEPS="1", OOMGUARD_PROBE_LENGTH="64")
    assert "fault" not in ended.types
    (probe,) = ended.of("probe")
    assert (probe["tokens"], probe["longest"]) == (64, None)


def test_without_being_asked_nothing_ends(job):
    ended = job()
    assert ended.out.splitlines()[-1] == "trained"
    assert "probe" not in ended.types
