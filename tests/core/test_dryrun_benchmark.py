"""The lists of what is predicted and measured: complete, and each named once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "prediction"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "prediction" / "gpu"))
from cases import SHAPES, cases
from rows import rows
from table import report, summary

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "prediction"


def test_every_published_row_becomes_a_request_that_keeps_its_figure():
    published = json.loads((BENCHMARK / "published_peaks.json").read_text())
    made = rows()
    assert len(made) == len(published) == len({row.name for row in made})
    for row, item in zip(made, published, strict=True):
        assert row.oom == item["oom"] == (row.measured_bytes is None)


def test_the_committed_results_cover_every_row_and_call_every_failure_right():
    results = json.loads((BENCHMARK / "results.json").read_text())["rows"]
    assert [line["row"] for line in results] == [row.name for row in rows()]
    assert all(line["right"] is not False for line in results)
    allocated = [abs(line["error"]) for line in results
                 if line["compared"] == "allocated" and line["error"] is not None]  # fmt: skip
    assert sorted(allocated)[len(allocated) // 2] < 0.015


def test_at_least_forty_configurations_would_be_measured_on_a_card():
    names = [case["name"] for case in cases()]
    assert len(names) == len(set(names)) >= 40
    assert {case["shape"] for case in cases()} == set(SHAPES)
    assert any(case["expandable"] for case in cases())


@pytest.mark.parametrize(
    ("name", "off"),
    [("nvidia-h100-80gb-hbm3", 0.006), ("nvidia-h100-80gb-hbm3-again", 0.001)],
)
def test_what_was_measured_on_a_card_was_predicted(name, off):
    results = json.loads((BENCHMARK / "gpu" / "results" / f"{name}.json").read_text())["results"]
    total = summary(results)
    assert total["configurations"] >= 40
    assert total["failed"] == 0
    assert total["fit_or_not_right"] == total["fit_or_not_judged"]
    assert total["allocated_bytes"]["median"] < off
    assert total["reserved_bytes"]["median"] < 0.006


def test_the_committed_traces_agree_with_real_runs_of_every_kind():
    rows = json.loads((BENCHMARK / "cpu_truth.json").read_text())
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) >= 20
    kinds = ("full", "lora", "qlora", "checkpointing", "accumulation", "evaluation", "images",
             "audio", "experts")  # fmt: skip
    assert [kind for kind in kinds if not any(kind in name for name in names)] == []
    assert max(abs(row["traced_bytes"] / row["real_bytes"] - 1) for row in rows) < 0.02


def measured(name: str, *, predicted: int, found: int | None, fits: bool) -> dict[str, object]:
    """One configuration as the benchmark keeps it; `found` None ran out of memory."""
    estimate = {"allocated_bytes": predicted, "reserved_bytes": predicted + 10,
                "reserved_expandable_bytes": predicted}  # fmt: skip
    real = {"oom": True} if found is None else {
        "oom": False, "allocated_bytes": found, "reserved_bytes": found + 10,
        "context_bytes": 500}  # fmt: skip
    return {"name": name, "expandable": False, "measured": real,
            "predicted": {"estimate": estimate, "fits_replay": fits}}  # fmt: skip


def test_the_table_of_a_card_says_how_far_off_and_what_was_called_right():
    results = [
        measured("right", predicted=1000, found=1000, fits=True),
        measured("too much", predicted=1100, found=1000, fits=True),
        measured("ran out", predicted=9000, found=None, fits=False),
        measured("called wrong", predicted=900, found=None, fits=True),
    ]
    total = summary(results)
    assert total["allocated_bytes"]["worst"] == pytest.approx(0.1)
    assert total["allocated_bytes"]["median"] == pytest.approx(0.05)
    assert (total["fit_or_not_right"], total["fit_or_not_judged"]) == (3, 4)
    assert total["context_bytes"] == {"least": 500, "median": 500, "most": 500}
    shown = report(results)
    assert "+10.00%" in shown
    assert "3 of 4 right" in shown
    assert sum("OOM" in line for line in shown.splitlines()) == 2
