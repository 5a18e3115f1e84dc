"""Jobs that leak: their end is forecast, and they are begun again before it comes.

As in the reports of Qwen2.5-VL in LLaMA-Factory and of Qwen's finetune.py: memory rises by the same
amount at every step, whatever the batch. Their own leaks need a GPU; here a patch of the Trainer
that all of them train with keeps memory for good.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from caps import peak_data_bytes
from jobs import TinyJob, hf_job
from multimodal import multimodal_job
from recipes import recipe_job

LEAK = Path(__file__).parent / "standins" / "leak"
LEAK_MIB, STEPS, SAVED_EVERY, FITS_STEPS = 32, 36, 4, 24
SETTINGS = {"per_device_train_batch_size": 2, "max_steps": STEPS, "seed": 0}


def flags(settings: dict[str, object]) -> tuple[str, ...]:
    return tuple(word for key, value in settings.items() for word in (f"--{key}", str(value)))


@dataclass(frozen=True)
class Leaking:
    """A job, the command that trains it, and the cap under which `FITS_STEPS` steps fit."""

    job: TinyJob
    argv: tuple[str, ...]
    cap_bytes: int

    def launch(self, *options: str) -> tuple[int, list[dict[str, object]]]:
        name = f"run{len(list(self.job.folder.glob('oomguard-runs/*')))}"
        cap = ("--host-memory", str(self.cap_bytes), "--no-in-place")
        words = ("launch", *cap, "--name", name, *options)
        ended = subprocess.run(
            [sys.executable, "-m", "oomguard", *words, "--", *self.argv],
            cwd=self.job.folder,
            env={**environ(self.job), "STEP_S": "0.15"},
            capture_output=True,
            text=True,
            check=False,
        )
        events = self.job.folder / "oomguard-runs" / name / "events.jsonl"
        assert events.exists(), ended.stderr[-3000:]
        return ended.returncode, [json.loads(line) for line in events.read_text().splitlines()]


def environ(job: TinyJob) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(LEAK), job.env.get("PYTHONPATH"))))
    return {**job.env, "LEAK_MIB": str(LEAK_MIB), "PYTHONPATH": paths}


def by_flags(job: TinyJob, **settings: object) -> Leaking:
    """Measure a job whose settings are flags: the last of two holds."""
    argv = (*job.argv, *flags({**SETTINGS, **settings}))
    first = flags({"max_steps": FITS_STEPS, "output_dir": "measured"})
    cap = peak_data_bytes((*argv, *first), cwd=job.folder, env=environ(job))
    return Leaking(job=job, argv=argv, cap_bytes=cap)


def hf(folder: Path) -> Leaking:
    return by_flags(hf_job(folder), max_length=128)


def qwen(folder: Path) -> Leaking:
    job = recipe_job("qwen/tiny.yaml", "qwen", "hf", folder)
    return by_flags(job, model_max_length=128, output_dir="out")


def llamafactory(folder: Path) -> Leaking:
    """Qwen2.5-VL, all of it trained, on small pictures."""
    job = multimodal_job("vision", folder)
    settings = {**SETTINGS, "image_max_pixels": 12544, "output_dir": "out"}
    argv = (*job.argv, *(f"{key}={value}" for key, value in settings.items()))
    first = (f"max_steps={FITS_STEPS}", "output_dir=measured")
    cap = peak_data_bytes((*argv, *first), cwd=folder, env=environ(job))
    return Leaking(job=job, argv=argv, cap_bytes=cap)


@pytest.fixture(
    scope="module",
    params=[
        hf,
        pytest.param(llamafactory, marks=pytest.mark.extended),
        pytest.param(qwen, marks=pytest.mark.extended),
    ],
)
def leaking(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


@pytest.fixture(scope="module")
def left_alone(leaking):
    """Without checkpoints, and with no rung that could help."""
    return leaking.launch("--ladder", "enable_qlora")


@pytest.fixture(scope="module")
def recycled(leaking):
    return leaking.launch("--checkpoint-every", str(SAVED_EVERY))


def named(events, name):
    return [event for event in events if event["event"] == name]


@pytest.mark.parametrize("leaking", [hf], indirect=True)
def test_left_alone_it_runs_out_as_forecast_and_growth_is_named_as_the_cause(left_alone):
    code, events = left_alone
    assert code == 3
    (exited,) = named(events, "exited")
    assert exited["verdict"]["kind"] == "host_oom"
    assert exited["verdict"]["cause"] == "growth"
    first, *_ = named(events, "growing")
    ran_out = exited["verdict"]["step"] + 1
    assert first["growth"]["forecast_step"] == pytest.approx(ran_out, rel=0.1)


def test_the_step_in_which_memory_will_be_gone_is_forecast_within_a_tenth(recycled):
    _, events = recycled
    first, *_ = named(events, "growing")
    assert first["growth"]["step"] < FITS_STEPS / 2, "long before it comes"
    assert first["growth"]["bytes_per_step"] == pytest.approx(LEAK_MIB * 2**20, rel=0.05)
    assert first["growth"]["forecast_step"] == pytest.approx(FITS_STEPS + 1, rel=0.1)


def test_it_trains_to_its_last_step_by_beginning_again_before_memory_runs_out(recycled):
    code, events = recycled
    assert code == 0
    assert [event["reason"] for event in named(events, "stopping")] == ["recycle"]
    assert not [e for e in named(events, "exited") if e["verdict"]["kind"] == "host_oom"]
    plans = [event["plan"] for event in named(events, "planned")]
    assert plans[0] == plans[1], "nothing about the job was changed"


def test_every_step_counts_once(recycled, leaking):
    state = leaking.job.folder / "out" / f"checkpoint-{STEPS}" / "trainer_state.json"
    history = [row["step"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    assert history == list(range(1, STEPS + 1))
    _, again = named(recycled[1], "planned")
    assert again["begins"]["checkpoint"]["step"] >= FITS_STEPS // 2


@pytest.fixture(scope="module")
def divided(leaking):
    """The same job, whose steps run again in parts when memory is gone."""
    own = replace(leaking, argv=(*leaking.argv, "--output_dir", "divided"))
    return lambda *options: own.launch(*options, "--in-place")


@pytest.mark.parametrize("leaking", [hf], indirect=True)
def test_steps_in_parts_do_not_hide_it_it_is_begun_again_all_the_same(divided):
    code, events = divided("--checkpoint-every", str(SAVED_EVERY))
    assert code == 0
    first, *_ = named(events, "growing")
    assert first["growth"]["bytes_per_step"] == pytest.approx(LEAK_MIB * 2**20, rel=0.05)
    assert [event["reason"] for event in named(events, "stopping")] == ["recycle"]
    plans = [event["plan"] for event in named(events, "planned")]
    assert plans[0] == plans[1], "nothing about the job was changed"


@pytest.mark.parametrize("leaking", [hf], indirect=True)
def test_without_a_checkpoint_steps_in_parts_end_with_growth_named_as_the_cause(divided):
    code, events = divided("--ladder", "halve_micro_batch")
    assert code == 3
    assert named(events, "growing")
    assert named(events, "split"), "a step ran in parts before"
    last = named(events, "exited")[-1]
    assert (last["verdict"]["kind"], last["verdict"]["cause"]) == ("host_oom", "growth")
