"""A job as a trial of a few steps: what it writes goes into a separate folder.

Nothing is saved, evaluated, tracked or pushed, and no checkpoint is resumed from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oomguard.configfile.layered import Settings
from oomguard.job.training_job import Job

#: A trial that the monitor does not end is over after this number of optimizer steps.
MOST_STEPS = 2
_EVALUATES = ("eval_strategy", "evaluation_strategy")
#: What it would do besides training; only keys that the job states are edited.
_TRAINER: Mapping[str, object] = {
    "load_best_model_at_end": False,
    "eval_on_start": False,
    "push_to_hub": False,
    "resume_from_checkpoint": None,
    "use_swanlab": False,
    **dict.fromkeys(_EVALUATES, "no"),
}


def trainer(settings: Settings, folder: str, output: str = "output_dir") -> Settings:
    """Return the settings of a Trainer job's trial; `output` is its key of the output folder."""
    settings = settings.set(output, folder).set("report_to", "none").set("save_strategy", "no")
    settings = settings.set("max_steps", MOST_STEPS)
    return stated(settings, {**_TRAINER, "logging_dir": folder})


def stated(settings: Settings, edits: Mapping[str, object]) -> Settings:
    """Edit those keys that the job states."""
    for key, value in edits.items():
        if settings.get(key) is not None:
            settings = settings.set(key, value)
    return settings


def with_settings(job: Job, settings: Settings, argv: tuple[str, ...], folder: str) -> Job:
    """Return the job with edited settings, as if its user had written them."""
    config = job.config
    if config is not None and settings.file is not None:
        config = settings.file.source
    return replace(job, argv=argv, config=config, output_dir=folder, checkpoint_every=None)
