"""A wrapped command is launched, relaunched and written down inside its wrapper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shell.launches import BATCH, CAP_BYTES, launch, write_job

CODE = "say('A', os.environ.get('A'), 'nice', os.nice(0)); batch = hold(micro); say('trained')"
CAP = ("--host-memory", str(CAP_BYTES))


@pytest.mark.parametrize("how", ["command", "script", "block"])
def test_it_keeps_its_wrapper_in_every_attempt_and_in_the_final_command(tmp_path, how):
    words = ("env", "A=1", "nice", "-n", "3", *write_job(tmp_path, CODE))
    job = ("--", *words)
    if how == "script":
        (tmp_path / "run.sh").write_text(
            f"export A=1\nnice -n 3 {sys.executable} job.py {' '.join(BATCH)}\n"
        )
        job = ("--", "bash", "run.sh")
    if how == "block":
        command = ", ".join(words[: -len(BATCH)])
        text = f"oomguard:\n  command: [{command}]\nper_device_train_batch_size: 16\n"
        (tmp_path / "train.yaml").write_text(text)
        job = ("train.yaml",)
    ended = launch(tmp_path, *CAP, *job)
    assert (ended.code, ended.micro_batches) == (0, [16, 8, 4]), ended.err
    nice = os.nice(0) + 3
    assert ended.out.count(f"A 1 nice {nice}") == 3
    line = (ended.run / "final" / "command.txt").read_text().splitlines()[-1]
    assert " env A=1 nice -n 3 " in line
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert f"A 1 nice {nice}\ntrained" in done.stdout


def test_a_wrapper_that_chooses_the_python_is_asked_for_it(tmp_path):
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text(f'#!/bin/sh\nshift\nPATH={Path(sys.executable).parent}:$PATH exec "$@"\n')
    uv.chmod(0o755)
    (tmp_path / "job.py").write_text("import sys; print('trained by', sys.executable)")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    ended = launch(tmp_path, "--", "uv", "run", "python", "job.py", *BATCH, env=env)
    assert ended.code == 0, ended.err
    assert f"trained by {sys.executable}" in ended.out
    assert ended.report["environment"]["executable"] == sys.executable


def test_what_cannot_be_followed_is_refused_in_one_sentence(tmp_path):
    ended = launch(tmp_path, "--", "srun", "-n", "2", *write_job(tmp_path, CODE))
    assert ended.code == 2
    assert "srun ... oomguard launch -- COMMAND" in ended.err
    assert not ended.run.exists()
