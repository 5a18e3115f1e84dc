"""A config text is parsed once, however many adapter methods read the job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from oomguard.cli.main import cli
from oomguard.configfile.document import Document, Source

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    "recipe",
    [
        "llamafactory/qwen2_5_vl.yaml",
        "litgpt/train.yaml",
        "torchtune/train.yaml",
        "hf_trainer/trl.yaml",
    ],
)
def test_a_plan_parses_each_text_of_the_config_once(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two texts at most: the file as loaded, and the same without its `oomguard:` block.
    parsed: Counter[str] = Counter()
    parse = Document.parse

    def counted(source: Source) -> Document:
        parsed[source.path] += 1
        return parse(source)

    monkeypatch.setattr(Document, "parse", counted)
    path = RECIPES / recipe
    result = CliRunner().invoke(cli, ["plan", str(path), "--gpu", "a10"])
    assert parsed, result.output
    assert parsed[str(path)] == 2
