"""The scaled-down twins under `recipes/`, as a user has them: run from the root of a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from assets import RECIPES
from environments import environment
from find_cap import at_once, by_hand
from jobs import TinyJob, _environ

ROOT = RECIPES.parent


def recipe_job(name: str, kind: str, framework: str, folder: Path) -> TinyJob:
    """Give the job of `recipes/NAME` in a folder that stands for the root of a checkout.

    `kind` is what `recipes/make_tiny.py` makes for it, `framework` the environment it runs in.
    """
    return made_job(name, kind, framework, folder, make=("recipes/make_tiny.py", kind))


def made_job(
    name: str, kind: str, framework: str, folder: Path, *, make: tuple[str, ...], path: str = ""
) -> TinyJob:
    """Give the job of a recipe whose model and data the script `make` makes.

    `path` becomes the job's PYTHONPATH.
    """
    for part in ("recipes", "tests"):
        (folder / part).symlink_to(ROOT / part)
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
        argv=_found(python, by_hand(f"recipes/{name}", config)),
        env=env,
        smaller=lambda micro: at_once(config, micro),
    )


def path_of(job: TinyJob) -> str:
    """Name the recipe as it is typed in the job's folder."""
    return str(job.config.relative_to(job.folder))


def _found(python: Path, argv: tuple[str, ...]) -> tuple[str, ...]:
    """Name the program of a command by its place in the framework's environment."""
    return (str(python.with_name(argv[0])), *argv[1:])
