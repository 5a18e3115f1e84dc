"""What docs/prediction.md claims."""

from __future__ import annotations

import re
from pathlib import Path

from oomguard.catalogue.shipped import carried, families
from oomguard.cli.plan_command import command
from oomguard.estimate import analytic, combine, constants
from oomguard.estimate.cards import card_named
from oomguard.estimate.formats import PACKED_BYTES
from oomguard.estimate.memory import Method, Term
from oomguard.job.plan import Quantization
from oomguard.predict.predictor import BUDGET_S
from oomguard.units import GIB, MIB

GUIDE = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text()


def test_the_tables_of_terms_and_methods_are_complete():
    terms = GUIDE[GUIDE.index("## Terms") : GUIDE.index("## Low, expected")]
    assert re.findall(r"^\| `(\w+)` \|", terms, re.MULTILINE) == [term.value for term in Term]
    assert all(f"`{method.value}`" in GUIDE for method in Method)


def test_the_figures_are_those_of_the_code():
    for name, spread in (
        ("trace", combine.SPREAD),
        ("analytic-scaled", combine.SCALED_SPREAD),
        ("analytic", analytic.SPREAD),
    ):
        assert f"| {name} | {spread.low:g} | {spread.high:g} |" in GUIDE
    assert f"factor of {combine.DISAGREEMENT}" in GUIDE
    assert f"by {constants.CUDA_CONTEXT_SPREAD_BYTES // MIB} MiB" in GUIDE
    assert f"after {BUDGET_S:.0f} s" in GUIDE
    assert f"{constants.PROCESS_BYTES / GIB:.1f} GiB for each process" in GUIDE
    assert f"{PACKED_BYTES[Quantization.NF4]:.4f}" in GUIDE
    assert f"{PACKED_BYTES[Quantization.NF4_DOUBLE]:.4f}" in GUIDE
    for card in ("RTX 3090", "A10"):
        assert f"{card_named(card).usable_bytes / GIB:.2f}" in GUIDE


def test_the_options_and_counts_are_there():
    usage = GUIDE[GUIDE.index("```") : GUIDE.index("## How")]
    options = {option for one in command.params for option in one.opts if option.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", usage.split("oomguard plan --gpu a10")[0])) == options
    assert abs(len(carried()) - 270) < 10
    assert "about 270 models" in GUIDE
    models = families()["litgpt"]["models"]
    assert isinstance(models, dict)
    assert abs(len(models) - 190) < 10
