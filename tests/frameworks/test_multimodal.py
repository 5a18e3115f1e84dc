"""A tiny Qwen2.5-VL and a tiny Qwen2-Audio in the real LLaMA-Factory, real processors and all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from caps import peak_data_bytes
from jobs import TinyJob
from multimodal import by_hand, multimodal_job
from recipes import path_of

# The fixtures launch a job several times.
pytestmark = pytest.mark.timeout(1200)

IMAGE_TOKENS = (448 // 28) ** 2
#: Gradients and optimizer state of the tower take some 120 MiB.
ROOM_BYTES = 40 << 20
FREEZE = "freeze_vision_tower_and_projector"
#: Before transformers 5 the model counted them; since then their positions fail to be written.
MISMATCH = r"features and image tokens do not match|shape mismatch.*cannot be broadcast"
_TRAINABLE = re.compile(r"trainable params: ([\d,]+) ")


@dataclass(frozen=True)
class Launched:
    code: int
    told: str
    run: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def log(self, attempt: int) -> str:
        return (self.run / "attempts" / f"{attempt:03d}" / "log.txt").read_text()


def launch(job: TinyJob, name: str, *words: str) -> Launched:
    asked = ("launch", path_of(job), "--name", name, "--no-predict", "--no-in-place", *words)
    ended = subprocess.run(
        [sys.executable, "-m", "oomguard", *asked],
        cwd=job.folder,
        env=dict(job.env),
        capture_output=True,
        text=True,
        check=False,
    )
    run = job.folder / "oomguard-runs" / name
    assert run.is_dir(), ended.stderr[-3000:]
    return Launched(code=ended.returncode, told=ended.stderr, run=run)


def trainable(log: str) -> int:
    match = _TRAINABLE.search(log)
    assert match is not None, log[-3000:]
    return int(match[1].replace(",", ""))


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return multimodal_job("vision", tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return multimodal_job("audio", tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def fitted(vision):
    """Samples are shorter than every cut, so only freezing helps.

    The cap is a little more than what the model takes with both parts frozen.
    """
    words = ("freeze_vision_tower=true", "freeze_multi_modal_projector=true")
    frozen = peak_data_bytes((*vision.argv, *words), cwd=vision.folder, env=vision.env)
    cap = ("--host-memory", str(frozen + ROOM_BYTES))
    return launch(vision, "fitted", *cap, "--ladder", f"cut_cutoff_len,{FREEZE}", "--no-relax")


def test_freezing_tower_and_projector_makes_the_job_fit(fitted):
    assert fitted.code == 0, fitted.told[-3000:]
    frozen = [planned["plan"]["frozen"] for planned in fitted.named("planned")]
    assert frozen == [*[[]] * (len(frozen) - 1), ["projector", "vision_tower"]]
    kinds = [exited["verdict"]["kind"] for exited in fitted.named("exited")]
    assert kinds == [*["host_oom"] * (len(frozen) - 1), "ok"]


def test_no_sequence_is_cut_below_its_media_tokens(fitted):
    lengths = [planned["plan"]["sequence_length"] for planned in fitted.named("planned")]
    known = fitted.named("run_started")[0]["job"]["lengths"]
    least = known["least"]
    # The samples are shorter than 512 tokens, which is known only where the tokenizer counts them.
    cuts = [512] if known["at_most"] > 512 else []
    assert lengths == [1024, *cuts, least, least]
    assert least > IMAGE_TOKENS
    reasons = {one["strategy"]: one["reason"] for one in fitted.named("planned")[-1]["skipped"]}
    assert "media tokens would be cut" in reasons["cut_cutoff_len"]


def test_what_is_frozen_is_not_trained_and_a_shorter_sequence_than_the_media_fails(fitted, vision):
    last = len(fitted.named("planned"))
    whole, frozen = trainable(fitted.log(1)), trainable(fitted.log(last))
    projector_only = ("freeze_vision_tower=true", "freeze_language_model=true")
    broken = by_hand(vision, f"cutoff_len={IMAGE_TOKENS // 2}", *projector_only)
    projector = trainable(broken.stdout)
    assert projector > 0
    assert projector + frozen < whole, "the rest is the tower's"
    assert broken.returncode != 0
    assert re.search(MISMATCH, broken.stdout), broken.stdout[-3000:]


def test_an_audio_job_runs_out_then_trains_and_its_new_tokens_are_named(audio):
    peaks = [
        peak_data_bytes(audio.by_hand(micro), cwd=audio.folder, env=audio.env) for micro in (8, 2)
    ]
    assert peaks[0] > 1.05 * peaks[1], f"the batch saves too little to tell: {peaks}"
    cap = ("--host-memory", str(sum(peaks) // 2), "--ladder", "halve_micro_batch")
    run = launch(audio, "tokens", *cap)
    assert run.code == 0, run.told[-3000:]
    assert run.named("exited")[0]["verdict"]["kind"] == "host_oom"
    assert run.named("planned")[-1]["plan"]["micro_batch"] < 8
    job = run.named("run_started")[0]["job"]
    assert job["multimodal"] is True
    assert job["trained_embeddings"] == ["embed_tokens", "lm_head"]
    report = json.loads((run.run / "fit-report.json").read_text())
    assert report["trained_embeddings"] == ["embed_tokens", "lm_head"]
    assert "embed_tokens and lm_head will be trained in full" in run.told
    log = run.log(len(run.named("planned")))
    named = re.search(r"Vocab has been resized, add (\S+) to trainable params", log)
    assert named is not None
    assert set(named[1].split(",")) == {"embed_tokens", "lm_head"}
    plain = by_hand(audio, "add_tokens=null", "max_steps=1", "per_device_train_batch_size=1")
    assert trainable(log) > 10 * trainable(plain.stdout), "new tokens are most of what is trained"
