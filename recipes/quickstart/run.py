"""The quickstart: make the job's files, find a cap at which it runs out, let oomguard launch it.

    python recipes/quickstart/run.py

Everything lands in `quickstart/` and `oomguard-runs/` at the root of the repository, and may be
run again. The exit code is that of `oomguard launch`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

RECIPE = Path("recipes", "quickstart")


def main() -> int:
    """Run the three steps in the root of the repository, each as you could type it."""
    _say("create a tiny model with random weights, a tokenizer and a dataset")
    made = _run(str(RECIPE / "make_assets.py"), "quickstart")
    if made.returncode != 0:
        return made.returncode
    _say("find a memory limit for this machine: micro batch 4 fits, 8 does not; the config has 16")
    cap = _run(str(RECIPE / "cap.py"), stdout=subprocess.PIPE)
    if cap.returncode != 0:
        return cap.returncode
    _say("launch the job: its first step runs out of memory, and runs again in smaller parts")
    # A prediction would begin with a micro batch that fits.
    options = ("--python", sys.executable, "--no-predict", *cap.stdout.split())
    return _run("-m", "oomguard", "launch", str(RECIPE / "train.yaml"), *options).returncode


def _run(*words: str, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, *words]
    print(f"$ {shlex.join(argv)}", flush=True)  # noqa: T201  this script tells what it does
    return subprocess.run(argv, cwd=root, stdout=stdout, text=True, check=False)


def _say(text: str) -> None:
    print(f"\n# {text}", flush=True)  # noqa: T201  this script tells what it does


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # oomguard has stopped the job and said so
        sys.exit(130)
