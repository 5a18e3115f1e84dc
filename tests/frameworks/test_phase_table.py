"""The committed table of phases against the packages that are installed."""

from __future__ import annotations

import pytest
from phase_sources import RULES, marked, packages

from oomguard.evidence.phase_table import TABLE, VERSIONS
from oomguard.evidence.verdict import Phase

pytestmark = pytest.mark.frameworks
#: Not in the environments: its wheel takes more room than all of them.
NOT_INSTALLED = {"vllm"}


def test_the_table_is_that_of_the_installed_sources() -> None:
    found = {name: (version, marked(name, folder)) for name, version, folder in packages()}
    assert found.keys() == VERSIONS.keys() - NOT_INSTALLED
    for name, (version, table) in found.items():
        committed = {file: _by_function(file) for file in TABLE if file.startswith(f"{name}/")}
        assert (name, version) == (name, VERSIONS[name])
        assert committed == table


def test_all_packages_and_phases_are_in_the_table() -> None:
    assert VERSIONS.keys() == RULES.keys()
    phases = {phase for by_phase in TABLE.values() for phase in by_phase}
    assert phases == {phase.value for phase in Phase} - {"unknown"}


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "accelerate", "deepspeed", "lightning", "torchtune"]
)
def test_what_starts_a_process_is_launching(package: str) -> None:
    assert any(file.startswith(f"{package}/") and "launch" in TABLE[file] for file in TABLE)


@pytest.mark.parametrize("package", ["transformers", "trl", "litgpt", "torchtune", "vllm"])
def test_what_generates_is_a_forward_pass_which_the_same_strategies_shrink(package: str) -> None:
    # Verdicts have no phase of their own for it: what is left to do is the same.
    files = [file for file in TABLE if file.startswith(f"{package}/")]
    names = " ".join(TABLE[file].get("forward", "") for file in files)
    assert "generate" in names or "execute_model" in names


def _by_function(file: str) -> dict[str, str]:
    return {
        function: phase
        for phase, functions in TABLE[file].items()
        for function in functions.split()
    }
