"""The ready configs of the frameworks that are told by their flags are read as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oomguard.adapters.registry import recognise
from oomguard.config import load
from oomguard.plan import Loftq, Tuning

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(path for name in ("qwen", "peft_loftq") for path in (RECIPES / name).glob("*.yaml"))


def test_each_folder_has_its_case_and_its_twin() -> None:
    assert len(FILES) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_read(bench: Callable[..., Any], path: Path) -> None:
    loaded = load(path)
    adapter = recognise(loaded.document, loaded.options.command)
    assert adapter.name == path.parent.name
    command = adapter.command_for(loaded.source, loaded.document, loaded.options.command)
    table = bench(adapter, gpus=2)
    job = table.job(" ".join(command), loaded.source.text)
    assert job.asked.tuning is Tuning.LORA
    assert job.asked.loftq is (Loftq.AT_ONCE if adapter.name == "peft_loftq" else None)
    assert job.global_batch in (16, 32, 1)
