"""Giving back and growing, end to end with the real Trainer under a real cap.

Memory follows the tokens that go through the model at once. The cap lies between what 2 whole
samples of some 420 tokens take and what 4 take that are cut to 256: the micro batch has to go down
to 2, and then nothing has to be cut.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from caps import peak_data_bytes
from jobs import hf_job

# The fixtures launch a job several times.
pytestmark = pytest.mark.timeout(1200)

BATCH, STEPS, WHOLE, CUT = 4, 7, 512, 256
#: 4 samples that are cut take 70 MiB more than 2 whole ones (`launched.SAMPLE_BYTES` is one cut).
ROOM_BYTES = 32 << 20


@dataclass(frozen=True)
class Launched:
    code: int
    told: str
    run: Path
    output: Path

    def named(self, name: str) -> list[dict[str, Any]]:
        lines = (self.run / "events.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Micro batch and sequence length of each attempt."""
        plans = [planned["plan"] for planned in self.named("planned")]
        return [(plan["micro_batch"], plan["sequence_length"]) for plan in plans]

    @property
    def purposes(self) -> list[str]:
        return [planned.get("purpose", "train") for planned in self.named("planned")]

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "fit-report.json").read_text())


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Callable[..., Launched]:
    job = hf_job(tmp_path_factory.mktemp("relax"))
    whole = {"max_length": WHOLE, "per_device_train_batch_size": BATCH, "max_steps": STEPS}
    settings = {**yaml.safe_load(job.config.read_text()), **whole}
    job.config.write_text(yaml.safe_dump(settings, sort_keys=False))
    fits = {"per_device_train_batch_size": 2, "max_length": WHOLE, "max_steps": 2}
    words = [word for key, value in fits.items() for word in (f"--{key}", str(value))]
    cap = str(peak_data_bytes([*job.argv, *words], cwd=job.folder, env=job.env) + ROOM_BYTES)

    def run(name: str, *options: str) -> Launched:
        words = ["--no-predict", "--no-in-place", "--host-memory", cap]
        asked = ["launch", job.config.name, "--name", name, *words]
        ended = subprocess.run(
            [sys.executable, "-m", "oomguard", *asked, *options],
            cwd=job.folder,
            env=dict(job.env),
            capture_output=True,
            text=True,
            check=False,
        )
        run = job.folder / "oomguard-runs" / name
        return Launched(
            code=ended.returncode, told=ended.stderr, run=run, output=job.folder / "out"
        )

    return run


@pytest.fixture(scope="module")
def relaxed(launch):
    return launch("relaxed", "--ladder", "cut_cutoff_len,halve_micro_batch")


@pytest.fixture(scope="module")
def grown(launch):
    return launch("grown", "--grow", "--ladder", "cut_cutoff_len,halve_micro_batch")


def test_the_cut_is_given_back_once_the_micro_batch_is_small_enough(relaxed):
    assert relaxed.code == 0, relaxed.told[-3000:]
    assert relaxed.sizes == [(4, WHOLE), (4, CUT), (2, CUT), (2, WHOLE)]
    assert relaxed.purposes == ["train"] * 3 + ["trial"]
    assert relaxed.named("stopping")[-1]["reason"] == "fits"
    assert relaxed.named("planned")[-1]["undone"] == ["cut_cutoff_len"]


def test_what_was_given_back_is_not_in_the_report(relaxed):
    report = relaxed.report
    assert [change["field"] for change in report["changes"]] == ["micro_batch", "accumulation"]
    assert report["fidelity"] == "same_math"
    assert "retrying without cut_cutoff_len" in relaxed.told


def test_growing_ends_with_the_largest_that_fits(grown):
    assert grown.code == 0, grown.told[-3000:]
    assert grown.sizes == [(1, CUT), (1, WHOLE), (2, WHOLE), (4, WHOLE), (2, WHOLE)]
    assert grown.purposes == ["train", *["trial"] * 3, "best"]
    assert grown.report["fidelity"] == "same_math"


@pytest.mark.parametrize("name", ["relaxed", "grown"])
def test_the_best_is_trained_to_its_end_at_the_global_batch(name, request):
    run = request.getfixturevalue(name)
    assert run.named("finished")[0]["status"] == "fit"
    assert run.report["attempts"][-1]["optimizer_steps"] == STEPS
    batches = {plan["micro_batch"] * plan["accumulation"] for plan in plans_of(run)}
    assert batches == {BATCH}


def plans_of(run: Launched) -> list[dict[str, Any]]:
    return [planned["plan"] for planned in run.named("planned")]
