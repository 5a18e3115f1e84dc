"""`oomguard plan --sweep` and `--compare`, against plans of the same configs one by one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from oomguard.cli.main import main
from shapes import LLAMA_YAML

RECIPES = Path(__file__).parents[2] / "recipes"
TRL, LITGPT = RECIPES / "hf_trainer" / "trl.yaml", RECIPES / "litgpt" / "train.yaml"


pytestmark = pytest.mark.usefixtures("arithmetic")


@pytest.fixture
def text(capsys):
    def run(*words: object) -> str:
        assert main(["plan", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


def test_a_row_is_what_a_plan_with_that_value_predicts(plan, train, tmp_path):
    found = plan(train, "--gpu", "a100-40", "--sweep", "sequence_length=512,1024,2048")
    assert [row["values"] for row in found["rows"]] == [
        {"sequence_length": length} for length in (512, 1024, 2048)
    ]
    for row in found["rows"]:
        file = tmp_path / "changed.yaml"
        length = row["values"]["sequence_length"]
        file.write_text(LLAMA_YAML.replace("cutoff_len: 2048", f"cutoff_len: {length}"))
        alone = plan(file, "--gpu", "a100-40")["asked"]
        assert {key: row[key] for key in alone} == alone
        assert (row["method"], row["refused"], row["global_batch"]) == ("analytic", None, 16)
        assert row["settings"] == ([f"cutoff_len: {length}"] if length != 2048 else [])
    assert [row["fits"] for row in found["rows"]] == ["yes", "unsure", "unsure"]


def test_two_sizes_are_combined_and_the_global_batch_follows_the_micro_batch(plan, train):
    words = ["--sweep", "micro_batch=1,4", "--sweep", "lora_rank=8,16"]
    rows = plan(train, "--gpu", "a100-40", *words)["rows"]
    assert [(r["values"]["micro_batch"], r["values"]["lora_rank"]) for r in rows] == [
        (1, 8), (1, 16), (4, 8), (4, 16),
    ]  # fmt: skip
    assert [row["global_batch"] for row in rows] == [2, 2, 8, 8]
    peaks = [row["estimate"]["expected_bytes"] for row in rows]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == len(peaks)


def test_the_table_and_the_csv_have_the_same_rows(plan, text, train):
    words = [train, "--gpu", "a100-40", "--sweep", "sequence_length=512,2048"]
    rows = plan(*words)["rows"]
    read = list(csv.DictReader(io.StringIO(text(*words, "--csv"))))
    assert [int(one["sequence_length"]) for one in read] == [512, 2048]
    for one, row in zip(read, rows, strict=True):
        assert (one["fits"], one["method"]) == (row["fits"], "analytic")
        for size in ("expected_bytes", "low_bytes", "high_bytes"):
            assert int(one[size]) == row["estimate"][size]
    lines = text(*words).splitlines()
    header = next(line for line in lines if line.startswith("sequence_length"))
    assert header.split() == [
        *("sequence_length", "global", "batch", "fits", "expected", "from", "to", "method")
    ]
    assert any(line.split()[:3] == ["512", "16", "yes"] for line in lines)


def test_a_bar_passes_the_mark_of_the_capacity_where_it_may_not_fit(plan, text, train):
    words = [train, "--gpu", "a100-40", "--sweep", "sequence_length=512,1024,4096"]
    fits = [row["fits"] for row in plan(*words)["rows"]]
    assert fits == ["yes", "unsure", "no"]
    drawn = [line for line in text(*words).splitlines() if "█" in line]
    marks = {line.index("|") for line in drawn}
    assert len(marks) == 1  # one capacity, one column
    beyond = [line.partition("|")[2] for line in drawn]
    assert beyond[0] == ""
    assert set(beyond[1]) == {"·"}
    assert beyond[2].startswith("█")


def test_what_is_not_modelled_is_unsure_in_every_row(plan, train):
    train.write_text(LLAMA_YAML + "mixture_of_depths: convert\n")
    found = plan(train, "--gpu", "b200", "--sweep", "micro_batch=1,2")
    assert [row["fits"] for row in found["rows"]] == ["unsure", "unsure"]
    assert [one["key"] for one in found["unmodelled"]] == ["mixture_of_depths"]


def test_a_value_that_the_framework_refuses_is_never_said_to_fit(plan, text, tmp_path):
    file = tmp_path / "train.yaml"
    recipe = (RECIPES / "llamafactory" / "qwen2_audio.yaml").read_text()
    file.write_text(recipe + "quantization_bit: 4\n")
    words = [file, "--gpu", "b200", "--sweep", "micro_batch=1"]
    (row,) = plan(*words)["rows"]
    assert row["fits"] == "unsure"
    assert "Cannot resize embedding layers" in row["refused"]
    assert "refused: Cannot resize" in text(*words)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--sweep", "micro_batsh=1"], "'micro_batch'"),
        (["--sweep", "micro_batch"], "has no values"),
        (["--sweep", "micro_batch=1,x"], "has no values"),
        (["--sweep", "micro_batch=0"], "at least 1"),
        (["--sweep", "image_pixels=1024"], "no image_pixels"),
        (["--sweep", "micro_batch=1", "--sweep", "micro_batch=2"], "twice"),
        (["--sweep", "micro_batch=" + ",".join(map(str, range(1, 1100)))], "1000"),
        (["--sweep", "micro_batch=1", "--max", "micro_batch"], "--max or --sweep"),
        (["--csv"], "--csv is for"),
        (["--compare"], "two config files"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(plan, train, words, what):
    assert what in plan(train, "--gpu", "h100", *words, code=2)["error"]["what"]


def test_configs_are_compared_as_each_is_planned(plan):
    found = plan("--gpu", "a100-40", "--compare", TRL, LITGPT)
    assert [one["file"] for one in found["configs"]] == [str(TRL), str(LITGPT)]
    for one in found["configs"]:
        alone = plan(one["file"], "--gpu", "a100-40")
        assert one["asked"] == alone["asked"]
        assert (one["first_fit"] is None) == (alone["chosen"] is None)
        if one["first_fit"]:
            chosen = alone["cheapest"] or alone["rungs"][alone["chosen"]]
            assert one["first_fit"]["plan"] == chosen["plan"]
    assert found["capacity_bytes"] == alone["capacity_bytes"]


def test_the_first_change_leaves_out_what_it_does_not_need(plan):
    recipe = RECIPES / "llamafactory" / "qwen2_5_vl.yaml"
    alone = plan(recipe, "--gpu", "a10")["cheapest"]
    assert alone["undone"]
    for one in plan("--gpu", "a10", "--compare", recipe, TRL)["configs"][:1]:
        assert (one["first_fit"]["path"], one["first_fit"]["undone"]) == (
            alone["path"], alone["undone"],
        )  # fmt: skip


def test_the_columns_show_what_differs_and_the_terms(text, train, tmp_path):
    other = tmp_path / "longer.yaml"
    other.write_text(LLAMA_YAML.replace("cutoff_len: 2048", "cutoff_len: 4096"))
    shown = text("--gpu", "a100-80", "--compare", train, other)
    rows = {line.split("  ")[0]: line.split() for line in shown.splitlines() if line}
    assert rows["sequence_length"] == ["sequence_length", "2048", "4096"]
    assert rows["fits as requested"][-2:] == ["yes", "unsure"]
    assert rows["weights"][1:] == ["14.96", "GiB", "14.96", "GiB"]
    assert "lora_rank" not in rows  # the same in both
    note = "note: every batch is assumed to be as long as the limit of"
    assert f"note: {other}: every batch" in shown
    assert note not in shown


def test_a_comparison_as_csv_has_a_row_for_each_config(text):
    read = csv.DictReader(io.StringIO(text("--gpu", "a100-40", "--compare", TRL, LITGPT, "--csv")))
    rows = list(read)
    assert [row["framework"] for row in rows] == ["trl", "litgpt"]
    assert [row["fits"] for row in rows] == ["unsure", "yes"]
    assert rows[1]["first_change"] == "none needed"


def test_several_configs_without_compare_are_refused(plan, train):
    assert "--compare" in plan(train, train, "--gpu", "h100", code=2)["error"]["what"]
