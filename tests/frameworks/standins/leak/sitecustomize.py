"""On PYTHONPATH: each training step of any Trainer keeps `LEAK_MIB` MiB for good.

It takes `STEP_S` seconds at least: a tiny model would be done before anybody could act.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time

TRAINER = "transformers.trainer"
ELEMENTS = int(os.environ["LEAK_MIB"]) * 2**20 // 4
STEP_S = float(os.environ.get("STEP_S", "0"))
KEPT = []


class Finder:
    """Finds the Trainer's module by the other finders, once, and changes what it defines."""

    def find_spec(self, name, path=None, target=None):
        if name != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            leak(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


def leak(trainer):
    import torch  # noqa: PLC0415  not in each process that has this on its path

    step = trainer.training_step

    def training_step(self, *args, **kwargs):
        KEPT.append(torch.ones(ELEMENTS))
        time.sleep(STEP_S)
        return step(self, *args, **kwargs)

    trainer.training_step = training_step


sys.meta_path.insert(0, Finder())
