"""The quickstart's training script with a leak: each training step keeps `LEAK_MIB` MiB for good.

LEAK_MIB=24 python leaking_train.py --model_name_or_path ... (flags of its train.py)
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import torch
import transformers

RECIPE = Path(__file__).parents[3] / "recipes" / "quickstart" / "train.py"
ELEMENTS = int(os.environ["LEAK_MIB"]) * 2**20 // 4
STEP = transformers.Trainer.training_step
KEPT = []


def leaking(self, *args, **kwargs):
    KEPT.append(torch.ones(ELEMENTS))
    return STEP(self, *args, **kwargs)


transformers.Trainer.training_step = leaking
runpy.run_path(str(RECIPE), run_name="__main__")
