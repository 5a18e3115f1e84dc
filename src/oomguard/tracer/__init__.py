"""The dry run: what a training job would allocate, traced without weights and without a GPU.

`path/oomguard_tracer` runs in the job's Python (or in oomguard's own) and answers in JSON; the
protocol is docs/tracer-protocol.md. It stands alone: standard library, and the torch found there.
Frameworks with model code of their own add a builder to `oomguard_traced_models`, beside their
adapters.
"""

from __future__ import annotations

import os
from pathlib import Path

#: The folder of `oomguard_tracer`.
PATH = Path(__file__).resolve().parent / "path"
#: The folder of `oomguard_traced_models`.
MODELS = Path(__file__).resolve().parents[1] / "adapters" / "traced"
#: What `python -m oomguard_tracer` needs as PYTHONPATH.
PYTHONPATH = f"{PATH}{os.pathsep}{MODELS}"
