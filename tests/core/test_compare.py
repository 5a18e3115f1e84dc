"""What differs between two runs is named, field by field, and what cannot be compared is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.test_report import report
from oomguard.job.provenance import (
    DataFile,
    DataFingerprint,
    Environment,
    GitState,
    GpuModel,
)
from oomguard.run.compare import (
    Section,
    Weight,
    compare,
    data_differences,
    environment_differences,
)
from oomguard.run.events import Status
from oomguard.run.printed_loss import LossEnds
from oomguard.run.report import FitReport

HERE = Environment(
    system="Linux",
    gpus=(GpuModel(name="A10G", total_bytes=22 << 30),),
    driver="570",
    cuda="12.8",
    python="3.11.7",
    executable="/a/python",
    packages={"torch": "2.8.0", "peft": "0.17"},
    git=GitState(commit="a" * 40, dirty=False),
)
FILE = DataFile(path="a.json", size_bytes=90, sha256="a" * 64, hashed_bytes=90, samples=3)
DATA = DataFingerprint(files=(FILE,), seed=7)


def full(**changes: object) -> FitReport:
    values = {"environment": HERE, "data": DATA, **changes}
    return replace(report(), **values)


def test_a_run_does_not_differ_from_itself():
    found = compare(full(), full())
    assert (found.differences, found.config_diff, found.unknown) == ((), "", ())


def test_what_was_requested_what_fits_and_how_it_went_is_compared():
    one = full()
    attempt = replace(
        one.attempts[-1],
        device_peak_bytes=5 << 30,
        loss=LossEnds(unit="step", first_at=1, first=2.0, last_at=9, last=1.0),
    )
    assert one.final is not None
    other = full(
        asked=replace(one.asked, sequence_length=512),
        final=replace(one.final, lora_rank=8),
        attempts=(one.attempts[0], attempt),
        seconds=99.4,
    )
    found = {(d.section, d.name): (d.before, d.after) for d in compare(one, other).differences}
    assert found == {
        (Section.REQUESTED, "sequence_length"): (None, 512),
        (Section.FINAL, "lora_rank"): (None, 8),
        (Section.OUTCOME, "seconds"): (9, 99),
        (Section.PEAKS, "device_peak_bytes"): (None, 5 << 30),
        (Section.LOSS, "unit"): (None, "step"),
        (Section.LOSS, "first_at"): (None, 1.0),
        (Section.LOSS, "first"): (None, 2.0),
        (Section.LOSS, "last_at"): (None, 9.0),
        (Section.LOSS, "last"): (None, 1.0),
    }


def test_final_configs_are_compared_as_text():
    one = full()
    assert one.reproduction is not None
    (file,) = one.reproduction.files
    text = file.text.replace(": 8", ": 4")
    changed = replace(one.reproduction, files=(replace(file, text=text),))
    diff = compare(one, replace(full(reproduction=changed), run="other")).config_diff
    assert diff is not None
    assert diff.startswith("--- r\n+++ other\n")
    assert "-per_device_train_batch_size: 8 # mine\n+per_device_train_batch_size: 4 # mine" in diff


def test_what_is_not_known_is_said():
    old = full(environment=None, data=None, reproduction=None)
    found = compare(old, replace(full(), final=None, status=Status.EXHAUSTED, run="b"))
    assert found.unknown == (
        "environment: not recorded for r",
        "data: not recorded for r",
        "final config: b found none that fits",
    )
    assert found.config_diff is None
    assert not {d.section for d in found.differences} & {Section.ENVIRONMENT, Section.DATA}


@pytest.mark.parametrize(
    ("other", "name", "weight"),
    [
        ({"gpus": (GpuModel(name="T4", total_bytes=15 << 30),)}, "gpus", Weight.MEMORY),
        ({"gpus": ()}, "gpus", Weight.MEMORY),
        ({"cuda": "11.8"}, "cuda", Weight.MEMORY),
        ({"driver": "600"}, "driver", Weight.LITTLE),
        ({"packages": {"torch": "2.9.0", "peft": "0.17"}}, "torch", Weight.RESULT),
        ({"packages": {"torch": "2.8.0"}}, "peft", Weight.RESULT),
        ({"git": GitState(commit="b" * 40, dirty=False)}, "git_commit", Weight.RESULT),
        ({"git": GitState(commit="a" * 40, dirty=True)}, "git_dirty", Weight.RESULT),
    ],
)
def test_each_fact_of_an_environment_is_compared_and_weighed(other, name, weight):
    (one,) = environment_differences(HERE, replace(HERE, **other))
    assert (one.name, one.weight) == (name, weight)


@pytest.mark.parametrize("other", [{"executable": "/b/python"}, {"driver": None}, {"git": None}])
def test_a_path_and_what_is_not_known_do_not_count(other):
    assert list(environment_differences(HERE, replace(HERE, **other))) == []


def test_files_are_compared_by_hash_where_both_have_one():
    changed = replace(FILE, sha256="b" * 64)
    (one,) = data_differences(DATA, replace(DATA, files=(changed,)))
    assert one.before == "sha256 aaaaaaaaaaaa, 90 bytes, 3 samples"
    assert one.after == "sha256 bbbbbbbbbbbb, 90 bytes, 3 samples"
    assert one.weight is Weight.RESULT
    unhashed = replace(FILE, sha256=None, hashed_bytes=0)
    assert list(data_differences(DATA, replace(DATA, files=(unhashed,)))) == []
    (gone,) = data_differences(DATA, replace(DATA, files=()))
    assert (gone.name, gone.after) == ("a.json", None)
    (seed,) = data_differences(DATA, replace(DATA, seed=8))
    assert (seed.name, seed.before, seed.after) == ("seed", 7, 8)
