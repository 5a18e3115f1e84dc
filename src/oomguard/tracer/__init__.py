"""The dry run: what a training job would allocate, traced without weights and without a GPU.

`path/oomguard_tracer` runs in the job's Python (or in oomguard's own) and answers in JSON; the
protocol is docs/tracer-protocol.md. It stands alone: standard library, and the torch found there.
"""

from __future__ import annotations

from pathlib import Path

#: The folder that goes on the PYTHONPATH of `python -m oomguard_tracer`.
PATH = Path(__file__).resolve().parent / "path"
