"""The frameworks' own environments: built once from pinned files, kept in the user's cache.

`pins/NAME.txt` lists every package of an environment. `pins/NAME-nodeps.txt`, where there is
one, is installed after it, without dependencies and without build isolation: packages whose
declared dependencies have no CPU build, or whose build needs the torch of the first list.
`pins/NAME-stubs/` is copied into site-packages: stand-ins for modules that are only imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
from filelock import FileLock

PINS = Path(__file__).with_name("pins")
NAMES = ("hf", "llamafactory", "litgpt", "torchtune", "trl", "peft", "schemas")
#: Asked for by a benchmark or an extended test alone, so not built beforehand: transformers as xMem
#: measured it, the packages of optimizers, ms-swift, axolotl, and what else recovers from an OOM.
OTHERS = ("xmem", "optimizers", "swift", "axolotl", "recovery")
_DONE = ".complete"
# DeepSpeed compiles its operators at first use instead of at install.
_BUILD_ENV = {"DS_BUILD_OPS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def environment(name: str) -> Path:
    """Return the Python of the environment `name`, which is built first if it is not there.

    Raises:
        ValueError: if no environment has this name.
        RuntimeError: if the build failed; it starts afresh next time.
    """
    if name not in (*NAMES, *OTHERS):
        raise ValueError(f"no environment {name!r}; there are {', '.join((*NAMES, *OTHERS))}")
    home = platformdirs.user_cache_path("oomguard") / "environments" / f"{name}-{_digest(name)}"
    python = home / "bin" / "python"
    if not (home / _DONE).exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            if not (home / _DONE).exists():
                _build(name, home, python)
    return python


def _build(name: str, home: Path, python: Path) -> None:
    """Build in place, since scripts carry absolute paths; the mark written last makes it whole."""
    shutil.rmtree(home, ignore_errors=True)
    _call(sys.executable, "-m", "venv", str(home))
    install = (str(python), "-m", "pip", "install", "--quiet")
    _call(*install, "--requirement", str(PINS / f"{name}.txt"))
    late = PINS / f"{name}-nodeps.txt"
    if late.exists():
        _call(*install, "--no-deps", "--no-build-isolation", "--requirement", str(late))
    stubs = PINS / f"{name}-stubs"
    if stubs.exists():
        (site_packages,) = home.glob("lib/python*/site-packages")
        shutil.copytree(stubs, site_packages, dirs_exist_ok=True)
    (home / _DONE).touch()


def _call(*argv: str) -> None:
    done = subprocess.run(
        argv, env=os.environ | _BUILD_ENV, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{tail}")


def _digest(name: str) -> str:
    """Hash everything that decides what is installed: 12 hex digits."""
    digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()}".encode())
    files = [*PINS.glob(f"{name}*.txt"), *PINS.glob(f"{name}-stubs/*.py")]
    files += [
        PINS / line.split()[1]
        for file in files
        for line in file.read_text().splitlines()
        if line.startswith("--requirement ")
    ]
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        print(environment(wanted))
