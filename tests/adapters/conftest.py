"""Jobs in memory: an adapter, a config text and a command line, without a file system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from oomguard.adapters.contract import Adapter, JobRequest
from oomguard.configfile.document import Source
from oomguard.job.command import Command
from oomguard.job.training_job import Job

CWD = "/home/me/project"
FOLDER = "/home/me/project/oomguard-runs/one/attempts/002"
ALL_PACKAGES = frozenset({"deepspeed", "bitsandbytes"})


@dataclass(frozen=True)
class Bench:
    """One adapter and its surroundings."""

    adapter: Adapter
    gpus: int = 1
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def request(self, argv: str, text: str | None = None, name: str = "train.yaml") -> JobRequest:
        return JobRequest(
            argv=tuple(argv.split()),
            cwd=CWD,
            source=None if text is None else Source(path=f"{CWD}/{name}", text=text),
            env={"PATH": "/bin", **self.env},
            gpus=self.gpus,
            packages=ALL_PACKAGES,
            files=self.files,
        )

    def job(self, argv: str, text: str | None = None, name: str = "train.yaml") -> Job:
        return self.adapter.read(self.request(argv, text, name))

    def reread(self, job: Job, command: Command) -> Job:
        """Read what was written as if a user had written it."""
        files = {file.path: file.text for file in command.files}
        source = Source(path=command.config, text=files[command.config]) if command.config else None
        return self.adapter.read(
            JobRequest(
                argv=command.argv,
                cwd=command.cwd,
                source=source,
                env=command.env,
                gpus=self.gpus,
                packages=job.packages,
                files={**self.files, **files},
            )
        )


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture(scope="session")
def folder() -> str:
    return FOLDER
