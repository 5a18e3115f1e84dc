"""`oomguard launch` on a tiny real job, and what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jobs import TinyJob, cap_bytes

OOMGUARD = (sys.executable, "-m", "oomguard")
RUN = "run"
#: Logits, their log-probabilities and their gradient: 256 tokens x 32768 words x 4 bytes each.
SAMPLE_BYTES = 3 * 256 * 32768 * 4


def cap_for(job: TinyJob, samples: int) -> int:
    """Return the cap under which `samples` fit at once; `cap_bytes` is the one for 6."""
    return cap_bytes(job) + (samples - 6) * SAMPLE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run that has ended."""

    job: TinyJob
    code: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        return self.job.folder / "oomguard-runs" / RUN

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "fit-report.json").read_text())

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return self.report["attempts"]

    @property
    def micro_batches(self) -> list[int]:
        return [attempt["plan"]["micro_batch"] for attempt in self.attempts]

    @property
    def kinds(self) -> list[str]:
        return [attempt["verdict"]["kind"] for attempt in self.attempts]

    def configs(self) -> Iterator[dict[str, Any]]:
        """Return the config of each attempt as it was launched."""
        for number in range(1, len(self.attempts) + 1):
            yield yaml.safe_load((self.attempt(number) / self.job.config.name).read_text())

    def attempt(self, number: int) -> Path:
        return self.run / "attempts" / f"{number:03}"

    @property
    def final(self) -> Path:
        return self.run / "final" / self.job.config.name

    def final_command(self) -> list[str]:
        """Return the command that is to be typed to have the run again."""
        lines = (self.run / "final" / "command.txt").read_text().splitlines()
        return ["sh", "-c", lines[-1]]


def start(job: TinyJob, *words: str) -> subprocess.Popen[str]:
    """Start `oomguard launch` in the job's folder; an OOM relaunches the job, unless `words` say.

    What is answered inside the process is tested in test_in_place.
    """
    ladder = ("--ladder", "classic", "--no-predict", "--no-in-place")
    return subprocess.Popen(
        [*OOMGUARD, "launch", "--name", RUN, *ladder, *words],
        cwd=job.folder,
        env={**job.env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(job: TinyJob, process: subprocess.Popen[str]) -> Launched:
    """Wait for its end."""
    with process:
        out, err = process.communicate()
    return Launched(job=job, code=process.returncode, out=out, err=err)


def launch(job: TinyJob, *words: str) -> Launched:
    """Run `oomguard launch` in the job's folder."""
    return wait(job, start(job, *words))


def again(job: TinyJob, folder: Path) -> TinyJob:
    """Return the same job in another folder, without making model and data once more."""
    for name in ("model", "data", "tiny", "recipes", "tests"):
        if (job.folder / name).exists():
            (folder / name).symlink_to(job.folder / name)
    config = folder / job.config.name
    config.write_text(job.config.read_text())
    return replace(job, folder=folder, config=config)


def edit(job: TinyJob, before: str, after: str) -> None:
    """Change the job's config in one place."""
    text = job.config.read_text()
    assert text.count(before) == 1
    job.config.write_text(text.replace(before, after))


def changed_lines(before: Path, after: Path) -> list[str]:
    """Return the lines that `after` has in the place of others, or besides those of `before`."""
    old = before.read_text().splitlines()
    return [line for line in after.read_text().splitlines() if line not in old]


def check_failed_once(launched: Launched, message: str, kind: str = "not_oom") -> None:
    """Hold a run against what a failure for another reason than memory has to leave."""
    assert launched.code == 1, launched.err
    assert launched.kinds == [kind]
    assert launched.report["status"] == "failed"
    assert message in launched.report["reason"]
    account = [line for line in launched.err.splitlines() if line.startswith("oomguard ")]
    assert any(message in line for line in account), account
