"""The quickstart's training script, which also writes down each sample that it trains on.

    python recording_train.py --model_name_or_path ... (flags of recipes/quickstart/train.py)

A line in `samples-<pid>.txt` in the working folder is one sample: a checksum of its tokens, and
how many there are.
"""

from __future__ import annotations

import os
import runpy
import zlib
from pathlib import Path

import transformers

RECIPE = Path(__file__).parents[3] / "recipes" / "quickstart" / "train.py"
COLLATE = transformers.DataCollatorForSeq2Seq.__call__


def recording(self, features, return_tensors=None):
    with Path(f"samples-{os.getpid()}.txt").open("a") as lines:
        for feature in features:
            tokens = feature["input_ids"]
            lines.write(f"{zlib.crc32(repr(tokens).encode())} {len(tokens)}\n")
    return COLLATE(self, features, return_tensors)


transformers.DataCollatorForSeq2Seq.__call__ = recording
runpy.run_path(str(RECIPE), run_name="__main__")
