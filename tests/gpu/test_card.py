"""What can only be seen on an NVIDIA card: NVML, the cap from inside, real CUDA failures.

Run with a Python that has torch with CUDA, or name one in OOMGUARD_GPU_PYTHON. The job of these
tests runs out at the same places on a CPU, under a cap of host memory: that much of them is tried
where there is no card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oomguard.machine.gpus import gpus
from oomguard.units import GIB, MIB

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "frameworks"))
from environments import environment  # noqa: E402  lies beside the frameworks' tests

JOB, LLAMA = HERE / "card_job.py", HERE / "llama_job.py"
SAMPLE_BYTES = 64 * MIB
#: 16 and 8 samples are too many for 384 MiB above what the process holds by itself, 4 fit.
CAP_BYTES = 384 * MIB
PHASES = ("load", "forward", "backward", "optimizer")


def card_python() -> str:
    return os.environ.get("OOMGUARD_GPU_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def card() -> dict[str, object]:
    """What torch says of the first card."""
    code = (
        "import json, torch; card = torch.cuda.get_device_properties(0); "
        "print(json.dumps({'name': card.name, 'total_bytes': card.total_memory}))"
    )
    asked = subprocess.run([card_python(), "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip("no torch with CUDA and a card here (OOMGUARD_GPU_PYTHON)")
    found: dict[str, object] = json.loads(asked.stdout)
    return found


def launch(folder: Path, *job: str, cap: tuple[str, ...]) -> dict[str, object]:
    """Launch a job with 16 samples at once; give the fit-report."""
    options = ["--framework", "hf_trainer", "--no-predict", "--ladder", "halve_micro_batch"]
    words = ["launch", "--name", "run", *options, *cap, "--", *job]
    subprocess.run(
        [sys.executable, "-m", "oomguard", *words, "--per_device_train_batch_size", "16"],
        cwd=folder,
        check=False,
    )
    report: dict[str, object] = json.loads(
        (folder / "oomguard-runs" / "run" / "fit-report.json").read_text()
    )
    return report


def outlived(report, oom_at: str) -> None:
    """The failure is known to the byte and the phase, and a smaller micro batch got past it."""
    first = report["attempts"][0]["verdict"]
    assert (first["phase"], first["requested_bytes"]) == (oom_at, 16 * SAMPLE_BYTES)
    assert report["status"] == "fit"
    assert report["attempts"][-1]["plan"]["micro_batch"] < 16


@pytest.mark.frameworks
def test_the_job_of_these_tests_runs_out_on_a_cpu_too(tmp_path):
    cap = ("--host-memory", "1200MiB")  # torch itself holds about 300
    report = launch(tmp_path, str(environment("hf")), str(JOB), "--oom_at", "backward", cap=cap)
    assert report["attempts"][0]["verdict"]["kind"] == "host_oom"
    outlived(report, "backward")


@pytest.mark.gpu
def test_nvml_and_cuda_speak_of_the_same_card(card):
    first, *_ = gpus()
    assert first.name == card["name"]
    assert first.total_bytes == pytest.approx(card["total_bytes"], rel=0.05)
    assert 0 < first.used_bytes < first.total_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("oom_at", PHASES)
def test_a_real_cuda_failure_in_each_phase_is_named_and_outlived(card, tmp_path, oom_at):
    cap = ("--gpu-memory", str(CAP_BYTES))
    report = launch(tmp_path, card_python(), str(JOB), "--oom_at", oom_at, cap=cap)
    assert report["attempts"][0]["verdict"]["kind"] == "device_oom"
    if oom_at == "load":
        assert report["status"] == "exhausted", "a smaller micro batch is no remedy there"
        return
    outlived(report, oom_at)


@pytest.mark.gpu
def test_a_llama_of_7b_shape_goes_from_out_of_memory_to_trained(card, tmp_path):
    if card["total_bytes"] < 26 * GIB:
        pytest.skip(f"{card['name']} is too small to stand for a card of 24 GiB")
    report = launch(tmp_path, card_python(), str(LLAMA), cap=("--gpu-memory", "22GiB"))
    assert report["attempts"][0]["verdict"]["kind"] == "device_oom"
    assert report["status"] == "fit"
    assert report["attempts"][-1]["device_peak_bytes"] < 22 * GIB


@pytest.mark.gpu
def test_the_quickstart_caps_the_card_and_trains(card):
    done = subprocess.run(
        [sys.executable, "recipes/quickstart/run.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of GPU memory" in done.stdout + done.stderr
