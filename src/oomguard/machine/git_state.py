"""Read the commit of a folder, and whether its files differ from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from oomguard.job.provenance import GitState

_TIMEOUT_S = 10
#: Nothing that the repository configures is started, and no lock is taken.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git_state(folder: Path) -> GitState | None:
    """Return the commit that a folder is at; None if it is not in a repository with a commit."""
    commit = _answer(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _answer(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return GitState(commit=commit, dirty=None if changes is None else bool(changes))


def _answer(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            [*_GIT, *words],
            capture_output=True, check=True, cwd=folder, stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}, timeout=_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
