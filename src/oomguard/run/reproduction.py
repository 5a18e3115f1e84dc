"""What another machine needs to run the final config: a command and files without own paths. Pure.

Two names stand for folders: `{oomguard:job}` for the one that the job runs in, `{oomguard:final}`
for the one with the files of the final config. `{oomguard:python}` is the job's interpreter.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from oomguard.job.command import Command, File
from oomguard.job.training_job import Job
from oomguard.redact import MASK, redact_config

JOB, FINAL, PYTHON = "{oomguard:job}", "{oomguard:final}", "{oomguard:python}"
#: Variables that say where things are on one machine.
_OF_MACHINE = frozenset({"PATH", "CUDA_VISIBLE_DEVICES"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The final command: its words, its variables, the files to write first.

    Paths of files begin with `{oomguard:final}`; `config` is the one that the framework reads.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    config: str | None = None

    @property
    def masked(self) -> tuple[str, ...]:
        """Return the words and files in which secrets were masked."""
        words = (word for word in (*self.argv, *self.env.values()) if MASK in word)
        return (*words, *(file.path for file in self.files if MASK in file.text))

    def at(self, *, job: str, final: str, python: str) -> Reproduction:
        """Return it for one machine: the folders, and the interpreter."""

        def there(text: str) -> str:
            for name, value in ((FINAL, final), (JOB, job), (PYTHON, python)):
                text = text.replace(name, value)
            return text

        return _mapped(self, there)


def reproduction(command: Command, job: Job, final: str) -> Reproduction:
    """Return what reproduces a command whose files are in the folder `final`."""
    folders = [(final, FINAL), (job.cwd, JOB)]

    def portable(text: str) -> str:
        for folder, name in folders:
            text = _path(folder).sub(name, text)
        return text

    env = {name: value for name, value in command.env.items() if name not in _OF_MACHINE}
    whole = Reproduction(
        argv=tuple(PYTHON if word == job.python else word for word in command.argv),
        env=env,
        files=tuple(File(path=file.path, text=redact_config(file.text)) for file in command.files),
        config=command.config,
    )
    return _mapped(whole, portable)


def _path(folder: str) -> re.Pattern[str]:
    """Return a pattern for a folder where it is a whole path or the beginning of one."""
    return re.compile(rf"(?<![\w./-]){re.escape(posixpath.normpath(folder))}(?=$|[^\w.-])")


def _mapped(one: Reproduction, change: Callable[[str], str]) -> Reproduction:
    return Reproduction(
        argv=tuple(map(change, one.argv)),
        env={name: change(value) for name, value in one.env.items()},
        files=tuple(File(path=change(file.path), text=change(file.text)) for file in one.files),
        config=None if one.config is None else change(one.config),
    )
