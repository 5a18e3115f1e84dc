"""A job that leaks: its end is forecast, and it is begun again before it comes.

The same leak as in the reports of Qwen2.5-VL in LLaMA-Factory and of Qwen's finetune.py: memory
rises by the same amount at every step, whatever the batch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from caps import peak_data_bytes
from jobs import hf_job

LEAKING = Path(__file__).parent / "standins" / "leaking_train.py"
LEAK_MIB, STEPS, SAVED_EVERY, FITS_STEPS = 24, 48, 4, 30


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A leaking job and the cap under which about thirty of its steps fit."""
    job = hf_job(tmp_path_factory.mktemp("leak"))
    command = [str(job.python), str(LEAKING)]
    settings = {
        **yaml.safe_load(job.config.read_text()),
        "oomguard": {"command": command},
        "per_device_train_batch_size": 2,
        "max_length": 128,
        "max_steps": STEPS,
        "seed": 0,
    }
    job.config.write_text(yaml.safe_dump(settings, sort_keys=False))
    flags = {**settings, "max_steps": FITS_STEPS, "output_dir": "measured"}
    words = [w for k, v in flags.items() if k != "oomguard" for w in (f"--{k}", str(v))]
    env = {**job.env, "LEAK_MIB": str(LEAK_MIB)}
    return job, env, peak_data_bytes([*command, *words], cwd=job.folder, env=env)


def launch(job, *options: str) -> tuple[int, list[dict[str, object]]]:
    job, env, cap_bytes = job
    name = f"run{len(list(job.folder.glob('oomguard-runs/*')))}"
    words = ["launch", job.config.name, "--host-memory", str(cap_bytes), "--name", name, *options]
    ended = subprocess.run(
        [sys.executable, "-m", "oomguard", *words],
        cwd=job.folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (job.folder / "oomguard-runs" / name / "events.jsonl").read_text().splitlines()
    return ended.returncode, [json.loads(line) for line in lines]


def named(events, name):
    return [event for event in events if event["event"] == name]


@pytest.fixture(scope="module")
def left_alone(job):
    """Without checkpoints, and with no rung that could help."""
    return launch(job, "--ladder", "enable_qlora")


@pytest.fixture(scope="module")
def recycled(job):
    return launch(job, "--checkpoint-every", str(SAVED_EVERY))


def test_left_alone_it_runs_out_and_growth_is_named_as_the_cause(left_alone):
    code, events = left_alone
    assert code == 3
    (exited,) = named(events, "exited")
    assert exited["verdict"]["kind"] == "host_oom"
    assert exited["verdict"]["cause"] == "growth"


def test_the_step_of_the_coming_failure_is_forecast_within_a_tenth(left_alone):
    _, events = left_alone
    first, *_ = named(events, "growing")
    ran_out = named(events, "exited")[0]["verdict"]["step"] + 1
    assert first["growth"]["step"] < ran_out / 2, "long before it comes"
    assert first["growth"]["bytes_per_step"] == pytest.approx(LEAK_MIB * 2**20, rel=0.05)
    assert first["growth"]["forecast_step"] == pytest.approx(ran_out, rel=0.1)


def test_it_trains_to_its_last_step_by_beginning_again_before_memory_runs_out(recycled):
    code, events = recycled
    assert code == 0
    assert [event["reason"] for event in named(events, "stopping")] == ["recycle"]
    assert not [e for e in named(events, "exited") if e["verdict"]["kind"] == "host_oom"]
    plans = [event["plan"] for event in named(events, "planned")]
    assert plans[0] == plans[1], "nothing about the job was changed"


def test_every_step_counts_once(recycled, job):
    state = job[0].folder / "out" / f"checkpoint-{STEPS}" / "trainer_state.json"
    history = [row["step"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    assert history == list(range(1, STEPS + 1))
    _, again = named(recycled[1], "planned")
    assert again["begins"]["checkpoint"]["step"] >= FITS_STEPS // 2
