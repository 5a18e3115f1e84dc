"""The recipes' twins on tiny multimodal models: LLaMA-Factory's environment with an overlay.

The overlay holds what processors of pictures and sounds import. torchvision has no build for
torch's CPU package here: its own operators do not load, so the file that describes them is left
empty; resizing and normalizing are plain torch. torchaudio breaks at import; a stand-in reads WAV.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import platformdirs
from environments import environment
from filelock import FileLock
from jobs import TinyJob
from recipes import made_job

PACKAGES = ("torchvision==0.28.0", "pillow==13.0.0")
_TORCHAUDIO = '''\
"""Reads WAV files, which is all that LLaMA-Factory asks of torchaudio here."""

import wave

import torch

__version__ = "0"


def load(path):
    with wave.open(str(path)) as file:
        raw = bytearray(file.readframes(file.getnframes()))
        samples = torch.frombuffer(raw, dtype=torch.int16).float() / 32768
        return samples.reshape(-1, file.getnchannels()).T, file.getframerate()
'''
RECIPES = {"vision": "qwen2_5_vl_tiny.yaml", "audio": "qwen2_audio_tiny.yaml"}


def overlay() -> Path:
    """Return a folder for PYTHONPATH, made once and kept beside the environments."""
    name = "multimodal-" + "-".join(PACKAGES).replace("==", "-")
    folder = platformdirs.user_cache_path("oomguard") / "environments" / name
    with FileLock(f"{folder}.lock"):
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            python = str(environment("llamafactory"))
            install = (python, "-m", "pip", "install", "--quiet", "--no-deps", "--target")
            subprocess.run([*install, str(folder), *PACKAGES], check=True, capture_output=True)
            (folder / "torchvision" / "_meta_registrations.py").write_text("")
            (folder / "torchaudio.py").write_text(_TORCHAUDIO)
            (folder / ".complete").touch()
    return folder


def multimodal_job(kind: str, folder: Path) -> TinyJob:
    """Return the twin on a tiny Qwen2.5-VL (`vision`) or Qwen2-Audio (`audio`)."""
    make = ("recipes/llamafactory/make_multimodal.py", kind, f"tiny/{kind}")
    name = f"llamafactory/{RECIPES[kind]}"
    return made_job(name, kind, "llamafactory", folder, make=make, path=str(overlay()))


def by_hand(job: TinyJob, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a job as its user would, with words after its command."""
    return subprocess.run(
        [*job.argv, *words],
        cwd=job.folder,
        env={**os.environ, **job.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
