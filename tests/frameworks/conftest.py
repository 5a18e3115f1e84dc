"""Everything here runs a real framework: marked `frameworks`, and most of it `slow` as well."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the helpers beside this file are imported by their own names
#: What `make test` runs: one job each of a script and of LLaMA-Factory, and what is inside a job.
QUICK = ("test_launch_hf", "test_launch_llamafactory", "test_monitor_torch", "test_quickstart")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, so that `-m "not frameworks"` leaves it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.frameworks)
            if item.path.stem not in QUICK:
                item.add_marker(pytest.mark.slow)
