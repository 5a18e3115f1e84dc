"""Discovery lies on the shell's floor; what it finds is the ladder."""

from __future__ import annotations

from pathlib import Path

import pytest

from oomguard.errors import StrategyError
from oomguard.ladder.climb import CLASSIC
from oomguard.ladder.load import load_strategies, own_folder, select

GOOD = """
from oomguard.strategy import SAME_MATH, Kind, Remedy, Strategy
STRATEGY = Strategy(summary="s", fidelity=SAME_MATH, change=lambda job, plan: None,
                    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM)}))
"""


def write(folder: Path, name: str, text: str = GOOD) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def ids(strategies):
    return [strategy.id for strategy in strategies]


def test_every_file_of_the_folder_is_on_the_ladder():
    assert len(load_strategies()) == len(list(own_folder().glob("*.py")))


def test_the_classic_six_keep_their_order_in_the_default_ladder():
    default = ids(load_strategies())
    assert [name for name in default if name in CLASSIC] == list(CLASSIC)


def test_classic_walks_exactly_the_six():
    assert ids(s for s in select(load_strategies(), "classic") if not s.preflight) == list(CLASSIC)


def test_a_list_of_ids_gives_its_own_order():
    chosen = select(load_strategies(), "enable_qlora, halve_micro_batch")
    assert ids(s for s in chosen if not s.preflight) == ["enable_qlora", "halve_micro_batch"]


def test_an_unknown_id_is_an_error_that_suggests_the_nearest():
    with pytest.raises(StrategyError, match="halve_micro_batch"):
        select(load_strategies(), "halve_micro_bach")


def test_a_users_folder_is_merged_by_number(tmp_path):
    write(tmp_path, "150_mine.py")
    merged = ids(load_strategies(tmp_path))
    assert merged.index("halve_micro_batch") < merged.index("mine") < merged.index("cut_cutoff_len")


def test_a_duplicate_id_names_both_files(tmp_path):
    path = write(tmp_path, "150_enable_qlora.py")
    with pytest.raises(StrategyError) as caught:
        load_strategies(tmp_path)
    assert str(path) in str(caught.value)
    assert str(own_folder() / "500_enable_qlora.py") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mine.py", GOOD, "150_my_strategy.py"),
        ("150_mine.py", "x = 1", "STRATEGY"),
        ("150_mine.py", "import torch_that_is_not_there", ":1: the file does not load"),
        ("150_mine.py", "a = 1\nthis is not python", ":2: the file does not load"),
        ("150_mine.py", "a = 1\n\n1 / 0", ":3: the file does not load: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path, name, text, says):
    path = write(tmp_path, name, text)
    with pytest.raises(StrategyError) as caught:
        load_strategies(tmp_path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(StrategyError, match="does not exist"):
        load_strategies(tmp_path / "nowhere")
