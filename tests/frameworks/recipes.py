"""The scaled-down twins under `recipes/`, as a user has them: run from the root of a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from assets import RECIPES
from environments import environment
from jobs import GLOBAL_BATCH, TinyJob, _environ

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
    config = folder / "recipes" / name
    return TinyJob(
        name=kind,
        folder=folder,
        python=python,
        config=config,
        argv=_by_hand(python, f"recipes/{name}", yaml.safe_load(config.read_text())),
        env=env,
        smaller={"litgpt": _litgpts, "llamafactory": _llamafactorys}.get(framework, _trainers),
    )


def path_of(job: TinyJob) -> str:
    """Name the recipe as it is typed in the job's folder."""
    return str(job.config.relative_to(job.folder))


def _by_hand(python: Path, path: str, config: dict[str, object]) -> tuple[str, ...]:
    block = config.pop("oomguard", None)
    if isinstance(block, dict):
        flags = [word for key, value in config.items() for word in (f"--{key}", str(value))]
        return (str(python), *block["command"][1:], *flags)
    if "finetuning_type" in config:
        return (str(python.with_name("llamafactory-cli")), "train", path)
    starts = ("litgpt", "finetune_lora") if "checkpoint_dir" in config else ("trl", "sft")
    return (str(python.with_name(starts[0])), starts[1], "--config", path)


def _trainers(micro: int) -> tuple[str, ...]:
    steps = GLOBAL_BATCH // micro
    batch = ("--per_device_train_batch_size", str(micro))
    return (*batch, "--gradient_accumulation_steps", str(steps))


def _litgpts(micro: int) -> tuple[str, ...]:
    return ("--train.micro_batch_size", str(micro))


def _llamafactorys(micro: int) -> tuple[str, ...]:
    return (f"per_device_train_batch_size={micro}",)
