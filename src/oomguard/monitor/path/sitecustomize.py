"""Start the monitor in this process, then run the `sitecustomize` that ours hides."""  # noqa: INP001 - found by name on the path, not in a package

from __future__ import annotations

import os

import oomguard_monitor  # type: ignore[import-not-found,unused-ignore]

oomguard_monitor.start(os.environ)
oomguard_monitor.run_next_sitecustomize(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib would cost every process its import
