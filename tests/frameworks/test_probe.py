"""`oomguard launch --probe` with real jobs: the longest batch first, and the run left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import GLOBAL_BATCH, cap_bytes, hf_job, litgpt_job, llamafactory_job
from launched import SAMPLE_BYTES, again, cap_for, launch

SCRIPT = str(Path(__file__).with_name("trainer_script.py"))
#: One length for each optimizer step; the long samples come last.
LENGTHS = (16, 24, 16, 256)
FLAGS = (
    *("--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "True"),
    *("--report_to", "none", "--save_strategy", "steps", "--save_steps", "1"),
    *("--max_length", "256", "--lengths", *map(str, LENGTHS), "--max_steps", str(len(LENGTHS))),
)


def words(job, micro):
    batch = (
        *("--per_device_train_batch_size", str(micro)),
        *("--gradient_accumulation_steps", str(GLOBAL_BATCH // micro)),
    )
    return (str(job.python), SCRIPT, *FLAGS, *batch)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return hf_job(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def probed(job):
    """A job whose long samples come last, under a cap that 4 of them at once fit under."""
    return launch(job, "--probe", "--host-memory", str(cap_bytes(job)), "--", *words(job, 8))


def of(launched, name):
    lines = (launched.run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_the_long_batch_that_would_come_late_runs_out_in_the_probe_and_never_in_the_run(probed):
    assert probed.code == 0, probed.err
    assert probed.micro_batches == [8, 4, 4]
    assert probed.kinds == ["host_oom", "ok", "ok"]
    assert [attempt["probe"] is not None for attempt in probed.attempts] == [True, True, False]
    assert [attempt["optimizer_steps"] for attempt in probed.attempts] == [0, 2, len(LENGTHS)]


def test_the_longest_batch_of_the_probe_is_as_long_as_the_limit(probed):
    assert probed.attempts[1]["longest_batch"] == max(LENGTHS)
    (told,) = of(probed, "probed")
    assert told["longest"] == max(LENGTHS)
    lines = (probed.attempt(2) / "memory.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["type"] == "step"]
    assert [step["shapes"]["input_ids"] for step in steps] == [[4, 256], [4, 256]]


def test_the_run_itself_begins_at_its_first_step_with_its_own_batches(probed):
    state = probed.job.folder / "out" / f"checkpoint-{len(LENGTHS)}" / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"]
    assert state.exists(), history
    lines = (probed.attempt(3) / "memory.jsonl").read_text().splitlines()
    first = next(line for line in map(json.loads, lines) if line["type"] == "step")
    assert (first["step"], first["shapes"]["input_ids"]) == (1, [4, LENGTHS[0]])
    begins = of(probed, "planned")[2]["begins"]
    assert begins is None or begins["checkpoint"] is None


def test_nothing_of_a_probe_is_left_and_the_output_folder_is_never_touched(job, tmp_path):
    apart = again(job, tmp_path)
    cap = cap_for(apart, 1) - SAMPLE_BYTES // 2
    before = apart.config.read_bytes()
    options = ("--probe", "--ladder", "halve_micro_batch", "--host-memory", str(cap))
    ended = launch(apart, *options, "--", *words(apart, 1))
    assert ended.code == 3, ended.err
    assert not (tmp_path / "out").exists()
    assert not (ended.attempt(1) / "output").exists()
    assert apart.config.read_bytes() == before


@pytest.mark.extended
@pytest.mark.parametrize("make", [llamafactory_job, litgpt_job])
def test_jobs_of_other_frameworks_are_probed_with_their_longest_batch(make, tmp_path):
    job = make(tmp_path)
    data = tmp_path / "data" / "train.json"
    rows = json.loads(data.read_text())
    short = [{**row, "output": row["output"][:40]} for row in rows[1:]]
    data.write_text(json.dumps([rows[0], *short]))
    ended = launch(job, "--probe", "--", *job.argv)
    assert ended.code == 0, ended.err
    assert [attempt["longest_batch"] for attempt in ended.attempts] == [256, None]
    assert [attempt["optimizer_steps"] for attempt in ended.attempts] == [2, 3]
    assert not list(ended.run.rglob("output"))
