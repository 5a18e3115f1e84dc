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
from typing import Any

import pytest

from oomguard.machine.gpus import gpus
from oomguard.units import GIB, MIB
from shapes import LLAMA_1B, LLAMA_7B

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "frameworks"))
from environments import environment  # noqa: E402  lies beside the frameworks' tests

JOB, TRAINER = HERE / "card_job.py", HERE / "trainer_job.py"
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


def launch(folder: Path, *job: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Launch a job under `oomguard launch` and return its fit-report."""
    words = ["launch", "--name", "run", "--framework", "hf_trainer", *options, "--", *job]
    done = subprocess.run(
        [sys.executable, "-m", "oomguard", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    path = folder / "oomguard-runs" / "run" / "fit-report.json"
    assert path.exists(), done.stderr[-4000:]
    report: dict[str, Any] = json.loads(path.read_text())
    report["output"] = done.stdout[-6000:] + done.stderr[-6000:]
    return report


def launch_hungry(folder: Path, python: str, oom_at: str, *cap: str) -> dict[str, Any]:
    """Launch the job that needs 64 MiB a sample in one phase, with 16 samples at once."""
    flags = ("--oom_at", oom_at, "--per_device_train_batch_size", "16")
    options = ("--no-predict", "--ladder", "halve_micro_batch", *cap)
    return launch(folder, python, str(JOB), *flags, options=options)


def check_survived(report: dict[str, Any], oom_at: str) -> None:
    """Assert that the OOM's phase and size were read, and that a smaller micro batch trained."""
    first = report["attempts"][0]["verdict"]
    assert (first["phase"], first["requested_bytes"]) == (oom_at, 16 * SAMPLE_BYTES)
    assert report["status"] == "fit"
    assert report["attempts"][-1]["plan"]["micro_batch"] < 16


@pytest.mark.frameworks
def test_the_job_of_these_tests_runs_out_on_a_cpu_too(tmp_path):
    cap = ("--host-memory", "1200MiB")  # torch itself holds about 300
    report = launch_hungry(tmp_path, str(environment("hf")), "backward", *cap)
    assert report["attempts"][0]["verdict"]["kind"] == "host_oom"
    check_survived(report, "backward")


@pytest.mark.gpu
def test_nvml_and_cuda_speak_of_the_same_card(card):
    first, *_ = gpus()
    assert first.name == card["name"]
    assert first.total_bytes == pytest.approx(card["total_bytes"], rel=0.05)
    assert 0 < first.used_bytes < first.total_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("oom_at", PHASES)
def test_a_real_cuda_oom_is_placed_in_its_phase_and_survived(card, tmp_path, oom_at):
    report = launch_hungry(tmp_path, card_python(), oom_at, "--gpu-memory", str(CAP_BYTES))
    assert report["attempts"][0]["verdict"]["kind"] == "device_oom"
    if oom_at == "load":
        assert report["status"] == "exhausted", "a smaller micro batch is no remedy there"
        return
    check_survived(report, oom_at)


TRAINING = (
    *("--output_dir", "out", "--report_to", "none", "--save_strategy", "no", "--bf16", "True"),
    *("--logging_steps", "1", "--learning_rate", "1e-5", "--torch_dtype", "bfloat16"),
)
LORA = ("--use_peft", "True", "--lora_target_modules", "all-linear")
LENGTH = ("--max_length", "2048")


def batch(micro: int, accumulation: int = 1, steps: int = 2) -> tuple[str, ...]:
    return (
        *("--per_device_train_batch_size", str(micro), "--max_steps", str(steps)),
        *("--gradient_accumulation_steps", str(accumulation)),
    )


def model(folder: Path, shape: dict[str, object], *, weights: bool = False) -> tuple[str, ...]:
    """Write a model of a shape under a folder, its weights too if asked, and return its flag."""
    target = folder / "model"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(shape))
    if weights:
        code = (
            "import sys, torch, transformers as t; torch.set_default_device('cuda');"
            "config = t.AutoConfig.from_pretrained(sys.argv[1]);"
            "t.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)"
            ".save_pretrained(sys.argv[1])"
        )
        subprocess.run([card_python(), "-c", code, str(target)], check=True)
    return ("--model_name_or_path", str(target))


def check_trained(report: dict[str, Any], cap_bytes: int, *, samples: int) -> dict[str, Any]:
    """Return the last attempt of a run that trained below the cap with its global batch kept."""
    assert report["status"] == "fit", report["output"]
    last: dict[str, Any] = report["attempts"][-1]
    assert last["device_peak_bytes"] < cap_bytes
    assert last["plan"]["micro_batch"] * last["plan"]["accumulation"] == samples
    return last


def check_predicted(attempt: dict[str, Any], within: float) -> None:
    """Assert that what was predicted before the launch is what PyTorch allocated."""
    predicted, measured = attempt["predicted"]["allocated_bytes"], attempt["device_peak_bytes"]
    print(f"predicted {predicted / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB")
    assert predicted == pytest.approx(measured, rel=within)


@pytest.mark.gpu
def test_a_7b_model_goes_from_oom_to_trained(card, tmp_path):
    if card["total_bytes"] < 26 * GIB:
        pytest.skip(f"{card['name']} is too small to stand for a card of 24 GiB")
    flags = (*model(tmp_path, LLAMA_7B), *LORA, *TRAINING, *LENGTH, *batch(4))
    options = ("--gpu-memory", "24GiB", "--no-predict")
    report = launch(tmp_path, card_python(), str(TRAINER), *flags, options=options)
    assert report["attempts"][0]["verdict"]["kind"] == "device_oom"
    check_trained(report, 24 * GIB, samples=4)


@pytest.mark.gpu
def test_a_7b_model_starts_at_the_predicted_config(card, tmp_path):
    if card["total_bytes"] < 26 * GIB:
        pytest.skip(f"{card['name']} is too small to stand for a card of 24 GiB")
    flags = (*model(tmp_path, LLAMA_7B), *LORA, *TRAINING, *LENGTH, *batch(4))
    report = launch(
        tmp_path, card_python(), str(TRAINER), *flags, options=("--gpu-memory", "24GiB")
    )
    last = check_trained(report, 24 * GIB, samples=4)
    assert len(report["attempts"]) == 1, "the prediction skipped what would have run out"
    check_predicted(last, 0.05)


@pytest.mark.gpu
def test_a_4_bit_base_is_predicted_and_trained(card, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized = ("--load_in_4bit", "True")
    flags = (
        *model(tmp_path, LLAMA_1B, weights=True),
        *quantized,
        *LORA,
        *TRAINING,
        *LENGTH,
        *batch(16),
    )
    report = launch(
        tmp_path, card_python(), str(TRAINER), *flags, options=("--gpu-memory", "16GiB")
    )
    check_predicted(check_trained(report, 16 * GIB, samples=16), 0.05)


@pytest.mark.gpu
def test_zero_3_with_one_rank_is_predicted_and_trained(card, tmp_path):
    pytest.importorskip("deepspeed")
    settings = {
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }
    (tmp_path / "ds_zero3.json").write_text(json.dumps(settings))
    flags = (
        *model(tmp_path, LLAMA_1B),
        *TRAINING,
        *LENGTH,
        *batch(8),
        *("--deepspeed", "ds_zero3.json", "--gradient_checkpointing", "True"),
    )
    one_rank = ("-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_addr")
    command = (card_python(), *one_rank, "127.0.0.1", str(TRAINER), *flags)
    report = launch(tmp_path, *command, options=("--gpu-memory", "40GiB"))
    check_predicted(check_trained(report, 40 * GIB, samples=8), 0.1)


@pytest.mark.gpu
def test_an_oom_in_the_evaluation_halves_the_evaluation_batch(card, tmp_path):
    evaluation = ("--eval_strategy", "steps", "--eval_steps", "1")
    flags = (*model(tmp_path, LLAMA_1B), *LORA, *TRAINING, *batch(1), *evaluation)
    held_out = ("--per_device_eval_batch_size", "64", "--max_length", "512")
    options = ("--gpu-memory", "8GiB", "--no-predict")
    report = launch(tmp_path, card_python(), str(TRAINER), *flags, *held_out, options=options)
    first = report["attempts"][0]["verdict"]
    assert (first["kind"], first["phase"]) == ("device_oom", "eval")
    last = check_trained(report, 8 * GIB, samples=1)
    assert last["plan"]["eval_batch"] < 64


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
    assert "out of device memory" in done.stdout + done.stderr
