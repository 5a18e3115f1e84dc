"""Each registered adapter is tested and documented; one that is not fails here."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import test_commands, test_refusals, test_round_trip, test_walks
from adapters.toytrain import toytrain
from oomguard.adapters.contract import Adapter
from oomguard.adapters.examples import example_of
from oomguard.adapters.registry import ADAPTERS

ADAPTER_FILES = Path(__file__).parents[2] / "src" / "oomguard" / "adapters"
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


MAKERS = {"number", "maybe_number", "text", "maybe_text", "flag", "fraction"}
FRAMEWORKS = [adapter.name for adapter in ADAPTERS if adapter.name != "hf_trainer"]


def keys_made(source: str) -> list[str]:
    """Return the names of the keys that a module makes; each holds its default."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = []
    for call in calls:
        maker = call.func.attr if isinstance(call.func, ast.Attribute) else call.func
        name = maker.id if isinstance(maker, ast.Name) else maker
        first = call.args[0] if call.args else None
        if name in MAKERS and isinstance(first, ast.Constant):
            made.append(str(first.value))
    return made


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_states_each_default_once(framework: str) -> None:
    files = sorted(ADAPTER_FILES.glob(f"{framework}*.py"))
    assert files
    made = Counter(key for file in files for key in keys_made(file.read_text()))
    assert made
    assert [key for key, times in made.items() if times > 1] == []


def test_a_default_that_is_stated_twice_is_found() -> None:
    twice = 'A = number("batch", 8)\ndef f(s): return fields.number("batch", 4).of(s)\n'
    assert keys_made(twice) == ["batch", "batch"]


@pytest.mark.parametrize(
    "adapter", [one for one in ADAPTERS if example_of(one)], ids=lambda adapter: adapter.name
)
def test_a_bound_of_tokens_is_taken_where_the_trainer_trains_and_changes_no_setting(adapter):
    job = example_of(adapter)
    assert job is not None
    bounded = replace(job.asked, token_bound=4096)
    assert (adapter.refusal(job, bounded) is None) == adapter.divides
    if adapter.divides:
        assert adapter.write(job, bounded, "/a") == adapter.write(job, job.asked, "/a")
        assert adapter.resume_mode(job, job.asked, bounded) == adapter.resume_mode(
            job, job.asked, job.asked
        )
