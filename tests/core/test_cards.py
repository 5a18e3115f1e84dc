from __future__ import annotations

from dataclasses import replace

import pytest

from generators import make_job
from oomguard.errors import UsageError
from oomguard.estimate.analytic import analytic
from oomguard.estimate.cards import CARDS, card_named
from oomguard.estimate.combine import Traced, traced_terms
from oomguard.estimate.constants import CUDA, CUDA_ON_HOPPER
from oomguard.estimate.memory import Term
from oomguard.predict.prediction_request import cuda_overhead
from oomguard.units import GIB, MIB
from shapes import problem


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 3090", "RTX 3090"),
        ("rtx3090", "RTX 3090"),
        ("3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("3080 ti", "RTX 3080 Ti"),
        ("a100-80", "A100 80GB"),
        ("A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB", "A100 80GB"),
        ("Tesla T4", "T4"),
        ("v100", "V100 16GB"),
        ("h100 pcie", "H100"),
        ("AMD Instinct MI300X", "MI300X"),
        ("A6000", "RTX A6000"),
        ("l40s", "L40S"),
        ("A10G 24 GiB", "A10G"),
    ],
)
def test_cards_are_found_as_people_write_them(written, name):
    assert card_named(written).name == name


@pytest.mark.parametrize(
    ("written", "hint"),
    [("RTX 3909", "RTX 3090"), ("A100", "Which of A100 40GB, A100 80GB"), ("H10O", "H100")],
)
def test_a_name_that_is_wrong_or_open_gets_a_hint(written, hint):
    with pytest.raises(UsageError) as caught:
        card_named(written)
    assert hint in caught.value.next_step
    assert "--gpu-memory" in caught.value.next_step


def test_no_two_cards_share_a_spelling_and_each_has_a_source():
    for card in CARDS:
        assert card_named(card.name) is card
        assert all(card_named(name) is card for name in card.names)
        assert card.source
        assert 7 * GIB < card.usable_bytes < 300 * GIB


@pytest.mark.parametrize(
    ("name", "nominal_gib"),
    [("RTX 3060", 12), ("RTX 3090", 24), ("A10", 24), ("A100 40GB", 40), ("H200", 141)],
)
def test_usable_is_less_than_the_name_says(name, nominal_gib):
    usable = card_named(name).usable_bytes / GIB
    assert 0.9 * nominal_gib < usable < nominal_gib


def test_the_cards_that_people_fine_tune_on_are_there():
    wanted = (
        "RTX 3060;RTX 3070;RTX 3080;RTX 3090;RTX 4060 Ti;RTX 4070;RTX 4080;RTX 4090;RTX 5070;"
        "RTX 5080;RTX 5090;T4;L4;A10;A10G;A40;A100 40GB;A100 80GB;A6000;L40S;H100;H200;B200;"
        "V100 16GB;V100 32GB;MI210;MI250X;MI300X"
    )
    assert all(card_named(name) for name in wanted.split(";"))


def test_cards_of_the_hopper_generation_are_known_as_such():
    hopper = {card.name for card in CARDS if card.hopper}
    assert hopper == {"H100", "H100 NVL", "H20", "GH200", "H200"}


@pytest.mark.parametrize("traced", [False, True])
def test_what_cuda_takes_on_a_hopper_card_is_counted(traced):
    """The difference between the figures measured on an H100 and those of other cards."""
    answer = Traced(
        allocated_bytes=GIB,
        reserved_bytes=GIB,
        reserved_expandable_bytes=GIB,
        terms={"weights": GIB},
        method="trace",
    )
    asked = problem()
    terms = [
        traced_terms(answer, one) if traced else analytic(one)
        for one in (asked, replace(asked, cuda=CUDA_ON_HOPPER))
    ]
    before, on_hopper = terms
    assert on_hopper[Term.CUDA_CONTEXT] - before[Term.CUDA_CONTEXT] == 308 * MIB
    if not traced:  # in a trace the tracer counts the workspaces
        assert on_hopper[Term.WORKSPACES] == 64 * MIB


def test_a_job_on_a_hopper_card_is_planned_with_its_overhead():
    assert cuda_overhead(make_job(hopper=True)) is CUDA_ON_HOPPER
    assert cuda_overhead(make_job()) is CUDA
