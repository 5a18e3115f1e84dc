"""The tiny variants under `recipes/`, run as a user runs them: with nothing else beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from assets import RECIPES
from environments import environment
from find_cap import micro_batch_flags, plain_command
from jobs import TinyJob, _environ


def recipe_job(name: str, kind: str, framework: str, folder: Path) -> TinyJob:
    """Return the job of `recipes/NAME` in a folder that holds nothing but `recipes/`.

    `kind` is what `recipes/make_tiny.py` makes for it, `framework` the environment it runs in.
    """
    return made_job(name, kind, framework, folder, make=("recipes/make_tiny.py", kind))


def made_job(
    name: str, kind: str, framework: str, folder: Path, *, make: tuple[str, ...], path: str = ""
) -> TinyJob:
    """Return the job of a recipe whose model and data the script `make` makes.

    `path` becomes the job's PYTHONPATH.
    """
    (folder / "recipes").symlink_to(RECIPES)
    python = environment(framework)
    env = _environ(folder, python) | ({"PYTHONPATH": path} if path else {})
    subprocess.run([python, *make], cwd=folder, env=env, check=True, capture_output=True)
    path = folder / "recipes" / name
    config = yaml.safe_load(path.read_text())
    return TinyJob(
        name=kind,
        folder=folder,
        python=python,
        config=path,
        argv=_found(python, plain_command(f"recipes/{name}", config)),
        env=env,
        smaller=lambda micro: micro_batch_flags(config, micro),
    )


def path_of(job: TinyJob) -> str:
    """Return the path of the recipe as it is typed in the job's folder."""
    return str(job.config.relative_to(job.folder))


def _found(python: Path, argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command whose program is the one in the framework's environment."""
    return (str(python.with_name(argv[0])), *argv[1:])
