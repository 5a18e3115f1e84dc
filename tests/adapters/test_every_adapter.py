"""Each registered adapter is tested and documented; one that is not fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapters import test_commands, test_refusals, test_round_trip, test_walks
from adapters.toytrain import toytrain
from oomguard.adapters.contract import Adapter
from oomguard.adapters.registry import ADAPTERS

README = (Path(__file__).parents[2] / "README.md").read_text()


def rows() -> list[str]:
    """Return the first cells of the README's table of frameworks."""
    table = README.split("## Frameworks")[1].split("\n## ")[0]
    return [row.replace("`", "") for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE)]


def missing(adapter: Adapter) -> list[str]:
    """Return what a registered adapter still needs."""
    found = {
        "sample config": any(
            case.adapter.name == adapter.name for case in test_round_trip.CASES.values()
        ),
        "ladder walk": any(one.name == adapter.name for one in test_walks.SAMPLES.values()),
        "command": any(name == adapter.name for name, _, _ in test_commands.COMMANDS),
        "refusal": any(adapter.name in row.frameworks for row in test_refusals.NEVER),
        "README row": any(row.startswith(adapter.title) for row in rows()),
    }
    return [what for what, is_there in found.items() if not is_there]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_a_registered_adapter_is_tested_and_documented(adapter: Adapter) -> None:
    assert missing(adapter) == []


def test_an_adapter_without_tests_is_found() -> None:
    assert missing(toytrain()) == [
        "sample config",
        "ladder walk",
        "command",
        "refusal",
        "README row",
    ]


def test_the_readme_lists_no_other_framework() -> None:
    listed = [row for row in rows() if row != "framework" and not row.startswith("---")]
    titles = tuple(adapter.title for adapter in ADAPTERS)
    assert [row for row in listed if not row.startswith(titles)] == []
    assert len(listed) == len(ADAPTERS)
